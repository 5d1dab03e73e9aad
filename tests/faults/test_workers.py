"""DataLoader workers that die, hang, hold too much, or find no room in shared memory: one class each, within the deadline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.calibration.schema import Calibration
from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits, OutOfMemory, TimedOut, UserCodeFailed, WorkerDied
from tests.faults.lab import Lab, ask, gone, lab

pytestmark = [pytest.mark.child, pytest.mark.slow]

DEADLINE_S = 5.0
needs_mounts = pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a shared memory of its own")


def pids_told(tell: Path) -> list[int]:
    return [int(path.read_text()) for path in tell.parent.glob(f"{tell.name}-*") if not path.name.endswith(".part")]


@pytest.mark.parametrize("fault", ["exit", "sys.exit", "killed", "segfault"])
def test_a_worker_that_dies_is_reported_and_the_other_workers_end(machine: Lab, tmp_path: Path, fault: str) -> None:
    tell = tmp_path / "worker"
    outcome = machine.outcome(ask("in_workers", 8, workers=2, fault=fault, tell=str(tell)))
    assert isinstance(outcome, WorkerDied), outcome
    assert pids_told(tell)
    assert all(gone(pid) for pid in pids_told(tell))


def test_an_exception_in_a_worker_is_a_user_code_error_with_its_traceback(machine: Lab) -> None:
    outcome = machine.outcome(ask("in_workers", 8, workers=2, fault="raises"))
    assert isinstance(outcome, UserCodeFailed)
    assert "KeyError: 'no such sample'" in outcome.traceback
    assert "in misbehave" in outcome.traceback


def test_a_worker_that_hangs_times_out_and_all_workers_end(machine: Lab, tmp_path: Path) -> None:
    tell = tmp_path / "worker"
    report = machine.measure(ask("in_workers", 8, workers=2, fault="stuck", tell=str(tell), deadline_s=DEADLINE_S))
    assert isinstance(report.outcome, TimedOut)
    assert report.outcome.phase == "measure"
    assert report.wall_s < DEADLINE_S + 6
    # Those of the probe, and of the count of lost blocks before it.
    assert len(pids_told(tell)) >= 2
    assert all(gone(pid, 1.0) for pid in pids_told(tell))


def test_a_batch_that_cannot_be_pickled_times_out_with_the_reason(machine: Lab) -> None:
    outcome = machine.outcome(ask("unpicklable", 8, workers=1, deadline_s=DEADLINE_S))
    assert isinstance(outcome, TimedOut)
    assert "pickle" in outcome.detail


def test_too_few_file_descriptors_produce_an_outcome_with_the_reason() -> None:
    with lab(prefix=["prlimit", "--nofile=128"]) as opened:
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)
        outcome = opened.outcome(ask("many_tensors", 64, workers=1, deadline_s=DEADLINE_S))
        # It depends on who runs out first: the loader hangs where the worker's queue does.
        assert isinstance(outcome, TimedOut | WorkerDied | UserCodeFailed), outcome
        assert "open files" in outcome.model_dump_json()
        if isinstance(outcome, UserCodeFailed):
            assert "ulimit -n" in outcome.hint
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)


def test_memory_of_workers_counts_as_demand(machine: Lab) -> None:
    idle = machine.outcome(ask("in_workers", 8, workers=2, fault="none"))
    holding = machine.outcome(ask("in_workers", 8, workers=2, fault="holds"))
    assert isinstance(idle, Fits)
    assert isinstance(holding, Fits)
    grown = holding.peak.demand_bytes - idle.peak.demand_bytes
    assert 0.9 * 200 * MIB < grown < 1.15 * 200 * MIB


@pytest.mark.cgroup
@pytest.mark.parametrize("workers", [1, 4])
def test_the_watchdog_stops_growing_workers_and_prefetched_batches(small: Lab, workers: int) -> None:
    for asked in (ask("in_workers", 512, workers=workers, fault="grows"), ask("images", 200, workers=workers)):
        report = small.measure(asked)
        assert isinstance(report.outcome, OutOfMemory), report.outcome
        assert report.outcome.source == "watchdog"


@pytest.mark.cgroup
def test_prefetched_batches_count_as_demand(small: Lab) -> None:
    alone = small.outcome(ask("images", 24))
    flying = small.outcome(ask("images", 24, workers=4))
    assert isinstance(alone, Fits)
    assert isinstance(flying, Fits)
    # Two are made for each worker: 8 batches of 24 MiB and more, beside the three of a loop without workers.
    assert flying.peak.demand_bytes > alone.peak.demand_bytes + 4 * 24 * MIB


@pytest.fixture(scope="module")
def small_shm() -> Iterator[Lab]:
    """A container's /dev/shm of 64 MiB."""
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    with lab(prefix=["unshare", "-m", "sh", "-c", mount, "sh"]) as opened:
        opened.measure(ask("plain", 4))
        yield opened


@pytest.mark.smoke("outcome:out-of-memory")
@needs_mounts
def test_full_shared_memory_is_reported_and_the_size_fits_without_workers(small_shm: Lab) -> None:
    outcome = small_shm.outcome(ask("images", 100, workers=1, deadline_s=20))
    assert isinstance(outcome, OutOfMemory), outcome
    assert outcome.source == "shm"
    assert isinstance(small_shm.outcome(ask("images", 100)), Fits)


@needs_mounts
def test_a_batch_that_exceeds_shared_memory_is_not_tried(small_shm: Lab, tmp_path: Path) -> None:
    made = small_shm.calibrate(ask("images", workers=2, mib=0.5), tmp_path / "calibration.json", max_probes=3)
    assert isinstance(made, Calibration)
    found = made.finding()
    assert found is not None
    assert found.train.limited_by == "shm"
    assert found.train.batch == 64 * 0.8 / 0.5 // 5
    assert {measured.outcome.kind for measured in made.measurements} == {"fits"}
