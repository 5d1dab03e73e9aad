"""Workers on data of every kind, in real children."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits
from batchcal.measure.children.probe import RehearsalRequest
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest
from batchcal.plan.make import make_plan
from tests.support.calibrations import a_calibration
from tests.support.children import fitting, probing, request

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]


def tried(kind: str, folder: Path | None = None, *, workers: int = 2, hang_s: float = 5.0) -> WorkersReport:
    """The report on one kind of data; on records of a file in `folder`, where that is given."""
    with probing("tests.measure.workers.tasks:task", kind=kind, folder="" if folder is None else str(folder)) as probe:
        return probe.try_workers(WorkersRequest(device="cpu", allocator="default", workers=workers, read_s=0.5, hang_s=hang_s))


@pytest.mark.parametrize(("kind", "in_a_file"), [("Rows", False), ("OpenedLater", True), ("Augmented", False)])
def test_data_that_supports_workers_passes_the_trial(kind: str, in_a_file: bool, tmp_path: Path) -> None:
    report = tried(kind, tmp_path if in_a_file else None)
    assert (report.check.result, report.check.cause) == ("ok", "")
    assert (report.workers.why_none, report.workers.start) == ("", None)
    assert 0 < report.workers.private_bytes < 64 * MIB


def test_workers_start_before_the_process_opens_the_file(tmp_path: Path) -> None:
    plan = make_plan(a_calibration(), effective_batch=64).model_copy(
        update={"num_workers": 2, "prefetch_factor": 2, "persistent_workers": True, "eval_batch": 8}
    )
    with probing("tests.measure.workers.tasks:checked", folder=str(tmp_path)) as probe:
        fitting(probe.measure(request(64, samples=8, workers=2)))
        rehearsed = probe.rehearse(
            RehearsalRequest(
                plan=plan,
                micro_batches=plan.micro_batches,
                worst_case=True,
                allowed_bytes=2 * GIB,
                budget_bytes=2 * GIB,
                least_s=0.2,
                limit_s=20.0,
            )
        )
    assert isinstance(rehearsed.outcome, Fits), rehearsed.outcome


@pytest.mark.smoke("job:batchcal.measure.workers.job:examine_workers")
def test_workers_that_share_a_file_position_violate_the_promise(tmp_path: Path) -> None:
    report = tried("ByNumber", tmp_path)
    assert report.check.result == "violated"
    assert report.check.mismatch is not None
    assert report.check.mismatch > 0
    assert "other samples' records" in report.workers.why_none


def test_a_dataset_with_an_open_file_uses_forkserver_workers(tmp_path: Path) -> None:
    report = tried("Reopened", tmp_path, hang_s=30.0)
    assert (report.check.result, report.workers.start) == ("ok", "forkserver")
    assert "Reopened.file is an open file" in report.workers.why_start


def test_a_process_pool_in_the_dataset_excludes_workers() -> None:
    report = tried("Pooled")
    assert report.check.result == "violated"
    assert "daemonic" in report.workers.why_none
    assert "pool" in report.check.fix


def test_a_worker_trial_that_hangs_is_stopped() -> None:
    began = time.monotonic()
    report = tried("HangingInWorkers", hang_s=1.5)
    assert time.monotonic() - began < 15
    assert report.workers.why_none == "the dataset hangs with workers"


def test_copied_memory_of_workers_is_extrapolated_up_to_its_maximum() -> None:
    report = tried("Table")
    assert report.check.result == "ok"
    # 400,000 lists of two with a float and a text each are about 90 MiB, and plain workers over an epoch hold as much.
    assert 60 * MIB < report.workers.bytes < 140 * MIB


def test_a_cache_of_the_dataset_is_recorded_in_the_facts() -> None:
    with probing("tests.measure.workers.tasks:cached") as probe:
        facts = probe.examine("cpu", "default", GIB, 3.0).facts
    assert 0.7 * 64 * 1024 < facts.kept_bytes_per_sample < 1.4 * 64 * 1024
    assert facts.kept_bytes == int(facts.kept_bytes_per_sample * 2000)


def test_a_cache_in_workers_is_extrapolated_to_all_samples() -> None:
    report = tried("Caching")
    assert 0.7 * 2000 * 64 * 1024 < report.workers.bytes < 1.6 * 2000 * 64 * 1024


def test_workers_with_equal_random_numbers_are_not_used() -> None:
    report = tried("OwnGenerator")
    assert report.check.result == "violated"
    assert report.workers.why_none == (
        "all workers would draw the same random numbers: OwnGenerator.random is a random generator (Random), "
        "and each worker has a copy of it"
    )
    assert "torch.initial_seed()" in report.check.fix
    assert tried("OwnGenerator", workers=1).check.result == "not-checked"
