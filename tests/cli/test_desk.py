"""What a calibration is asked for: flags and files, else what it was asked for before, else the defaults."""

from __future__ import annotations

import pytest

from batchcal.cli.desk import options_from
from batchcal.core.settings import Settings
from batchcal.core.units import GIB
from batchcal.measure.options import options

UNSET = Settings(environ={})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_where_nobody_sets_anything_it_is_asked_for_what_it_was_asked_for_before(device: str) -> None:
    before = options(GIB, device=device, samples=5, max_batch=64, workers=2, margin=0.2, headroom=0.5)
    assert options_from(UNSET, limit_bytes=GIB, like=before) == before
    defaults = options(GIB, device=device)
    assert options_from(UNSET, limit_bytes=GIB, like=defaults) == defaults


def test_a_margin_that_is_set_holds_for_every_device() -> None:
    asked = options_from(Settings(flags={"margin": "25%"}, environ={}), limit_bytes=GIB, like=options(GIB))
    assert (asked.margin, asked.accelerator_margin) == (0.25, 0.25)
