"""Labs that several tests share: one zygote serves them all, as in a calibration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.core.units import MIB
from tests.faults.lab import Lab, ask, lab
from tests.support.shim import built

SMALL = 900 * MIB


@pytest.fixture(scope="session")
def machine() -> Iterator[Lab]:
    """Without a limit of its own; a probe's budget is 700 MiB."""
    with lab() as opened:
        opened.measure(ask("plain", 4))  # the zygote is there before a test looks what is left behind
        yield opened


@pytest.fixture(scope="session")
def small() -> Iterator[Lab]:
    """In a real memory group of 900 MiB, where the kernel must never have to kill."""
    with lab(SMALL) as opened:
        opened.measure(ask("plain", 4))
        yield opened


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets calls fail, for LD_PRELOAD."""
    library = built(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("no C compiler to make the failing calls with")
    return library
