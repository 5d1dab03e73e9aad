"""The k-th allocation of a step fails, for one k after the other, once or from then on: always a class, never a hang.

As SQLite tests itself. oneDNN follows a null pointer where a small allocation fails: 359 of 481 such failures were a SIGSEGV.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Suspect, UserCodeFailed
from tests.faults.lab import Lab, ask, lab

pytestmark = pytest.mark.child

LARGE = 64 * 1024
SAMPLE = (1, 2, 5, 13, 34, 89, 233)
"""k: among the first allocations and far into the step."""


@pytest.fixture(scope="module")
def failing(shim: Path) -> Iterator[Lab]:
    with lab(environment={"LD_PRELOAD": str(shim)}) as opened:
        assert isinstance(opened.outcome(ask("failing_allocation", 8, k=-1, least=1, persistent=False)), Fits)
        yield opened


def met(failing: Lab, k: int, least: int, *, persistent: bool) -> Outcome:
    return failing.outcome(ask("failing_allocation", 8, k=k, least=least, persistent=persistent, deadline_s=15))


@pytest.mark.parametrize("k", SAMPLE)
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
def test_a_failed_large_allocation_is_out_of_memory_suspect_or_harmless(failing: Lab, k: int, persistent: bool) -> None:
    outcome = met(failing, k, LARGE, persistent=persistent)
    assert isinstance(outcome, Fits | OutOfMemory | Suspect), outcome


@pytest.mark.parametrize("k", SAMPLE)
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
def test_a_failed_allocation_produces_a_classified_outcome(failing: Lab, k: int, persistent: bool) -> None:
    outcome = met(failing, k, 1, persistent=persistent)
    # Where nothing at all can be had any more there is no report either.
    assert isinstance(outcome, Fits | OutOfMemory | Suspect | Infrastructure), outcome


def test_a_probe_works_after_failed_allocations(failing: Lab) -> None:
    met(failing, 1, 1, persistent=True)
    assert isinstance(failing.outcome(ask("plain", 8)), Fits)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("least", [1, 1024, LARGE])
def test_failed_allocations_never_time_out_or_count_as_user_errors(failing: Lab, least: int, persistent: bool) -> None:
    kinds: dict[str, int] = {}
    for k in range(1, 251, 16):
        outcome = met(failing, k, least, persistent=persistent)
        assert not isinstance(outcome, UserCodeFailed), (k, outcome)
        kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
    assert "timed-out" not in kinds
    assert sum(kinds.values()) == 16
