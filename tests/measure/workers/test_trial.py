"""Workers are tried before they are raced, planned or measured with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.core.errors import BatchcalError, NothingFits, Partial, UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Outcome, OutOfMemory, TimedOut
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import Examination, TimingReport, TimingRequest
from batchcal.measure.options import options
from batchcal.measure.pipeline.candidates import CandidateLimits
from batchcal.measure.rehearsal.finals import entries, variant_of
from batchcal.measure.rehearsal.loading import Loading
from batchcal.measure.rehearsal.work_bound import WorkBound
from batchcal.measure.workers.job import WorkersAnswer
from batchcal.measure.workers.report import _ended, report_of
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest, trial_of
from batchcal.plan.make import make_plan
from tests.support.calibrations import step_time
from tests.support.probes import Harness

LOADING = Loading(
    room=CandidateLimits(cores=2.0, shm_bytes=GIB, memory_bytes=GIB, worker_bytes=48 * MIB, open_files=1024, processes=None),
    batch_bytes=MIB,
)
HANGS = PromiseCheck(promise="same-samples-in-workers", result="violated", cause="the dataset hangs with workers", fix="no pool")


class Data(FakeProbe):
    """Samples of which each takes as long to fetch as the rest of its step, waiting."""

    def __init__(self, report: WorkersReport, *, fetch_share: float = 0.5, kept: float = 0.0) -> None:
        super().__init__()
        self.report, self.share, self.kept = report, fetch_share, kept
        self.tried: list[WorkersRequest] = []

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        examination = super().examine(device, allocator, budget_bytes, limit_s)
        facts = examination.facts.model_copy(update={"kept_bytes_per_sample": self.kept})
        return examination.model_copy(update={"facts": facts})

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        self.tried.append(request)
        return self.report

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        return TimingReport(times=tuple(map(self._fetching, super().time_sizes(request).times)))

    def _fetching(self, time: StepTime) -> StepTime:
        return time.model_copy(update={"fetch_s": time.step_s * self.share})


def bad() -> WorkersReport:
    return WorkersReport(check=HANGS, workers=LoaderWorkers(why_none=HANGS.cause))


def good(**update: object) -> WorkersReport:
    check = PromiseCheck(promise="same-samples-in-workers", result="ok")
    return WorkersReport(check=check, workers=LoaderWorkers().model_copy(update=update))


def heavy() -> WorkBound:
    return WorkBound({2: step_time(1, 3.0, threads=2, fetch_s=2.0, fetch_cpu_s=2.0)}, 2.0, on_host=True)


def test_workers_are_not_raced_if_the_data_does_not_support_them() -> None:
    finalists = entries(heavy(), replace(LOADING, why_none="the dataset hangs with workers"))
    with_workers = [one for one in finalists if one.num_workers]
    assert with_workers
    assert {(one.left, one.why) for one in with_workers} == {("failed", "the dataset hangs with workers")}


def test_workers_are_raced_with_the_start_method_that_the_data_needs() -> None:
    loading = replace(LOADING, start="forkserver", other_start="spawn")
    finalists = entries(heavy(), loading)
    assert {one.multiprocessing_context for one in finalists if one.num_workers} == {"forkserver"}
    failed = [one.model_copy(update={"left": "failed"}) if one.num_workers else one for one in finalists]
    assert variant_of(failed[0], failed, loading) is None, "no further start method is tried"


def test_a_plan_excludes_workers_that_hang_and_records_the_reason(harness: Harness) -> None:
    probe = Data(bad())
    calibration = harness.calibrate(probe).calibration
    assert len(probe.tried) == 1
    plan = make_plan(calibration)
    assert (plan.num_workers, plan.why["num_workers"]) == (0, HANGS.cause)
    assert HANGS in calibration.promises
    assert any(HANGS.cause in note for note in calibration.notes)
    finals = calibration.finals[0].finalists
    assert all(one.why == HANGS.cause for one in finals if one.left == "failed")


@pytest.mark.parametrize(("report", "workers"), [(good(), 3), (bad(), 0)])
def test_workers_derived_from_the_number_of_cores_are_tried(harness: Harness, report: WorkersReport, workers: int) -> None:
    harness.environment = harness.environment.model_copy(update={"optimal_workers": 3})
    probe = Data(report)
    calibration = harness.calibrate(probe, options(GIB, objective="memory", max_batch=64)).calibration
    assert len(probe.tried) == 1
    assert make_plan(calibration, objective="memory", effective_batch=64).num_workers == workers


def test_light_data_needs_no_trial(harness: Harness) -> None:
    probe = Data(bad(), fetch_share=0.0)
    calibration = harness.calibrate(probe).calibration
    assert probe.tried == []
    assert calibration.promises == ()


def test_requested_workers_that_fail_the_trial_raise_the_cause(harness: Harness) -> None:
    probe = Data(bad())
    with pytest.raises(UserCodeError) as error:
        harness.calibrate(probe, options(GIB, workers=4))
    assert error.value.what == "4 workers cannot be used: the dataset hangs with workers"
    assert error.value.try_ == "--workers 0; or no pool"
    assert probe.requests == [], "nothing is measured with such workers"
    assert [one.workers for one in probe.tried] == [2]


def test_requested_workers_that_pass_the_trial_are_recorded(harness: Harness) -> None:
    probe = Data(good(start="forkserver", why_start="it holds a file"))
    calibration = harness.calibrate(probe, options(GIB, workers=1)).calibration
    assert len(probe.tried) == 1
    plan = make_plan(calibration)
    assert (plan.num_workers, plan.multiprocessing_context) == (1, "forkserver")
    assert [check.result for check in calibration.promises] == ["ok"]


@pytest.mark.parametrize(
    ("workers", "growth", "kept", "reserved"),
    [(None, 50, 0.0, 0), (None, 0, 1024.0, 58), (2, 50, 0.0, 100), (2, 50, 2048.0, 234), (0, 0, 1024.0, 58)],
    ids=["raced", "cache", "asked", "asked, cache", "none asked"],
)
def test_the_budget_reserves_memory_for_growth_during_an_epoch(
    harness: Harness, workers: int | None, growth: int, kept: float, reserved: int
) -> None:
    probe = Data(good(growth_bytes=growth * MIB), fetch_share=0.0, kept=kept)
    calibration = harness.calibrate(probe, options(GIB, workers=workers)).calibration
    budget = calibration.budget()
    assert budget is not None
    assert budget.reserved_bytes // MIB == reserved
    assert budget.budget_bytes + budget.reserved_bytes + budget.margin_bytes + budget.others_bytes == budget.limit_bytes
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.peak_bytes <= budget.budget_bytes
    assert any("by the end of an epoch" in note for note in calibration.notes) == bool(reserved)
    assert not any("by the end of an epoch" in notice for notice in make_plan(calibration).notices)


def test_requested_workers_that_outgrow_the_memory_are_rejected(harness: Harness) -> None:
    with pytest.raises(NothingFits) as error:
        harness.calibrate(Data(good(growth_bytes=250 * MIB), fetch_share=0.0), options(GIB, workers=4))
    assert "4 workers do not fit: by the end of an epoch they grow by 0.98 GiB" in error.value.what
    assert error.value.try_.startswith("--workers 2, a larger container")
    assert harness.calibrate(Data(good(growth_bytes=250 * MIB), fetch_share=0.0), options(GIB, workers=2)).path is not None


def test_a_cache_that_outgrows_the_memory_adds_a_notice_to_the_plan(harness: Harness) -> None:
    calibration = harness.calibrate(Data(good(), fetch_share=0.0, kept=40_000.0), options(GIB)).calibration
    budget = calibration.budget()
    assert budget is not None
    assert budget.reserved_bytes == 0
    plan = make_plan(calibration)
    assert plan.num_workers == 0
    assert any("by the end of an epoch, and the budget has no room" in notice for notice in plan.notices)
    assert any("larger container" in notice for notice in plan.notices)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (OutOfMemory(source="watchdog"), NothingFits),
        (TimedOut(phase="measure", limit_s=5.0), UserCodeError),
    ],
)
def test_a_worker_trial_stopped_by_a_limit_raises_the_matching_error(
    harness: Harness, outcome: Outcome, error: type[BatchcalError]
) -> None:
    with pytest.raises(error) as raised:
        harness.calibrate(Data(_ended(outcome, 2)), options(GIB, workers=2))
    assert type(raised.value) is error
    assert raised.value.try_


def test_the_time_limit_ends_a_worker_trial_as_partial(harness: Harness) -> None:
    cut = TimedOut(phase="load", limit_s=5.0, limit_name="the time limit of 20 s")
    stopped = harness.calibrate(Data(_ended(cut, 2)), options(GIB, workers=2)).stopped
    assert isinstance(stopped, Partial)
    assert stopped.what == "the time limit of 20 s ended while workers were tried"


def test_no_worker_trial_runs_if_zero_workers_are_requested(harness: Harness) -> None:
    probe = Data(bad())
    harness.calibrate(probe, options(GIB, workers=0))
    assert probe.tried == []


def test_the_limit_of_a_worker_trial_depends_on_the_remaining_time() -> None:
    for left_s in (0.0, 10.0, 60.0, 3600.0):
        request = trial_of("cpu", "default", requested=None, left_s=left_s)
        assert 3.0 <= request.hang_s <= 8.0
        assert request.limit_s <= max(11.0, left_s * 0.9)


def test_answers_of_a_worker_trial_give_promise_checks() -> None:
    swapped = report_of(WorkersAnswer(compared=100, wrong=50, swapped=20, example="sample 1 comes with ..."))
    assert (swapped.check.result, swapped.check.mismatch) == ("violated", 0.5)
    assert swapped.workers.why_none == swapped.check.cause
    assert "shares an open file" in swapped.check.cause
    torn = report_of(WorkersAnswer(compared=100, wrong=50, swapped=20, example="sample 1", failed="raise", error="pickle"))
    assert torn.check.cause.startswith("workers return other samples' records"), "an error that comes with them is no cause"
    unpickled = report_of(WorkersAnswer(holding="Data.file is an open file", does_not_pickle="TypeError: cannot"))
    assert unpickled.check.result == "violated"
    assert "Data.file is an open file" in unpickled.workers.why_none
    unstable = report_of(WorkersAnswer(compared=1, not_compared="the dataset is not deterministic"))
    assert (unstable.check.result, unstable.workers.why_none) == ("not-checked", "")
    assert report_of(WorkersAnswer(compared=8)).check.result == "ok"
    grown = report_of(WorkersAnswer(compared=8, private_bytes=10, copied_bytes=5, kept_bytes=7)).workers
    assert grown.bytes == 17


def test_a_stopped_worker_trial_excludes_workers() -> None:
    late = _ended(TimedOut(phase="measure", limit_s=5.0), 2)
    assert (late.check.result, late.workers.why_none) == ("violated", "the dataset hangs with workers")
    full = _ended(OutOfMemory(source="watchdog"), 2)
    assert (full.check.result, full.ended_by) == ("not-checked", "memory")
    assert "2 DataLoader workers" in full.workers.why_none
    cut = _ended(TimedOut(phase="measure", limit_s=5.0, limit_name="the time limit of 20 s"), 2)
    assert (cut.check.result, cut.ended_by) == ("not-checked", "time-limit")
    assert cut.workers.why_none == "the time limit of 20 s ended while workers were tried"
    slow = _ended(TimedOut(phase="load", limit_s=5.0), 2)
    assert slow.check.result == "not-checked"
    assert slow.workers.why_none
