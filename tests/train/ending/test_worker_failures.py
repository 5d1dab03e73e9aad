"""Which error a dead worker is."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection

import pytest

from batchcal.core.errors import BatchcalError, NothingFits, UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.runtime.worker_deaths import WorkerDeath
from batchcal.train.ending.worker_failures import WorkerMemory, blame_workers, error_of, memory_of_workers


@pytest.mark.parametrize(
    ("number", "kernel_killed", "near_limit", "kind"),
    [
        (signal.SIGTERM, False, True, BatchcalError),
        (signal.SIGKILL, True, False, NothingFits),
        (signal.SIGKILL, False, False, BatchcalError),
        (signal.SIGBUS, False, False, NothingFits),
        (signal.SIGSEGV, False, False, UserCodeError),
        (signal.SIGSEGV, False, True, NothingFits),
        (None, False, False, UserCodeError),
        (None, True, False, NothingFits),
    ],
)
def test_only_signs_of_memory_pressure_make_a_worker_death_a_memory_error(
    number: int | None, kernel_killed: bool, near_limit: bool, kind: type[BatchcalError]
) -> None:
    error = error_of(WorkerDeath(number), detail="text", known="saved", kernel_killed=kernel_killed, near_limit=near_limit)
    assert type(error) is kind
    assert "saved" in error.known
    assert error.try_
    assert ("memory" in error.what) == (kind is NothingFits)


REFUSED = NothingFits("memory ran out between two steps", known="saved", try_="a larger --margin")


@pytest.mark.parametrize("held", [None, WorkerMemory(2, 50 * MIB)])
def test_workers_that_use_little_memory_are_not_reported(held: WorkerMemory | None) -> None:
    assert blame_workers(REFUSED, held, GIB) is REFUSED


def test_workers_that_use_much_memory_are_reported_with_their_memory() -> None:
    error = blame_workers(REFUSED, WorkerMemory(2, 300 * MIB), GIB)
    assert error.known == "2 DataLoader workers hold 300 MiB; saved"
    assert error.try_ == "fewer --workers, or a larger --margin"


def _hold(ready: Connection) -> None:
    held = bytearray(b"1") * (64 * MIB)
    ready.send(len(held))
    ready.recv()


@pytest.mark.child
def test_the_memory_of_live_workers_is_measured() -> None:
    assert memory_of_workers() is None
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_hold, args=(theirs,), daemon=True)
    worker.start()
    try:
        assert ours.recv() == 64 * MIB
        held = memory_of_workers()
    finally:
        ours.send(None)
        worker.join(10)
    assert held is not None
    assert held.workers == 1
    assert 64 * MIB < held.held_bytes < 128 * MIB
