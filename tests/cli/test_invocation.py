"""What a calibration is asked for: flags and files, else what it was asked for before, else the defaults."""

from __future__ import annotations

import pytest

from batchcal.cli.commands.training import options_of
from batchcal.cli.invocation import options_from
from batchcal.core.units import GIB, MIB
from batchcal.measure.options import options
from batchcal.values.settings import Settings

UNSET = Settings(environ={})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_unset_options_keep_the_values_of_the_existing_calibration(device: str) -> None:
    before = options(GIB, device=device, samples=5, max_batch=64, workers=2, margin=0.2, headroom=0.5)
    assert options_from(UNSET, limit_bytes=GIB, existing=before) == before
    defaults = options(GIB, device=device)
    assert options_from(UNSET, limit_bytes=GIB, existing=defaults) == defaults


def test_a_given_margin_applies_to_every_device() -> None:
    asked = options_from(Settings(flags={"margin": "25%"}, environ={}), limit_bytes=GIB, existing=options(GIB))
    assert (asked.margin, asked.accelerator_margin) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("flags", "measured", "expected"),
    [({}, None, None), ({}, 900 * MIB, 900 * MIB), ({"memory_limit": "700MiB"}, 900 * MIB, 700 * MIB)],
    ids=["none", "of the calibration", "a flag"],
)
def test_a_training_respects_the_memory_limit(flags: dict[str, str | None], measured: int | None, expected: int | None) -> None:
    """Before, the limit was that of the calibration alone: a training took what the container had."""
    options = options_of(Settings(flags=flags, environ={}), margin=0.15, memory_limit_bytes=measured)
    assert options.memory_limit_bytes == expected
