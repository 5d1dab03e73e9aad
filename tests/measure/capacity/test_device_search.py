"""What bounds a search, what ends it, and what it leaves undone; for training and for evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.calibration.records.undone import Undone
from batchcal.calibration.schema import Budget, Finding, Measurement, Options
from batchcal.core.errors import BatchcalError, GuardError, Interrupted, NothingFits, Partial, UserCodeError
from batchcal.core.progress import Recorded
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import SharedMemory
from batchcal.guard.outcome import Fits, Outcome, OutOfMemory, Suspect, TimedOut, UserCodeFailed
from batchcal.measure.calibrate import SHARE_OF_SEARCH
from batchcal.measure.capacity.attempts import Attempts
from batchcal.measure.capacity.budgets import MARGIN_DOUBLINGS
from batchcal.measure.capacity.device_search import DeviceSearch
from batchcal.measure.capacity.search_run import DEADLINE_LEAST_S
from batchcal.measure.capacity.task_sizes import TRIAL_STEPS
from batchcal.measure.capacity.time import SearchTime
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import Examination, Observation, ProbeRequest
from batchcal.measure.heap.trial import HeapReading, HeapReport, HeapRequest
from batchcal.measure.options import options
from batchcal.measure.race.devices import DevicePolicies
from batchcal.plan.make import make_plan
from tests.support.probes import BROKEN, FAILED, KILLED, Harness, ScriptedProbe, fits

FOR_MEMORY = options(GIB, objective="memory")


def found(harness: Harness, probe: FakeProbe, asked: Options | None = None) -> Finding:
    finding = harness.calibrate(probe, asked).calibration.finding()
    assert finding is not None
    return finding


def test_a_suspect_size_that_fits_when_repeated_does_not_change_the_result(harness: Harness) -> None:
    suspect = Suspect(detail="died by SIGSEGV", near_limit=0.9)
    probe = ScriptedProbe(lambda request, time: suspect if time == 1 and request.mode == "train" else None)
    finding = found(harness, probe)
    assert finding.train == found(Harness(new_folder(harness)), ScriptedProbe()).train.model_copy(
        update={"measured_by": finding.train.measured_by}
    )


def new_folder(harness: Harness) -> Path:
    folder = harness.folder / "other"
    folder.mkdir()
    return folder


def test_a_size_that_is_suspect_twice_is_too_big(harness: Harness) -> None:
    suspect = Suspect(detail="died by SIGSEGV", near_limit=0.95)
    probe = ScriptedProbe(lambda request, time: suspect if request.batch > 250 and request.mode == "train" else None)
    finding = found(harness, probe)
    assert 230 <= finding.train.batch <= 250
    assert finding.train.limited_by == "memory"


@pytest.mark.parametrize("outcome", [KILLED, BROKEN], ids=lambda outcome: outcome.kind)
def test_a_probe_that_failed_for_an_external_reason_is_repeated(harness: Harness, outcome: Outcome) -> None:
    probe = ScriptedProbe(lambda request, time: outcome if time == 1 else None)
    calibration = harness.calibrate(probe).calibration
    assert calibration.status == "complete"
    assert {one.attempt for one in calibration.measurements} == {1, 2}


def test_a_size_rejected_by_the_task_sets_limited_by_to_model(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: FAILED if request.batch > 250 else None)
    calibration = harness.calibrate(probe).calibration
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.limited_by == "model"
    assert 230 <= finding.train.batch <= 250
    assert any("refuses batch" in note for note in calibration.notes)


def test_a_task_that_fails_at_every_size_raises_user_code_error(harness: Harness) -> None:
    with pytest.raises(UserCodeError):
        harness.calibrate(ScriptedProbe(lambda request, time: FAILED))


def test_nothing_fits_names_shared_memory_when_it_is_the_cause(harness: Harness) -> None:
    """Before, the message stated that 238 MiB do not fit a budget of 1.24 GiB."""
    full = OutOfMemory(source="shm", detail="RuntimeError: unable to write to file, in DataLoader worker 0")
    with pytest.raises(NothingFits, match="from a DataLoader worker does not fit into /dev/shm") as raised:
        harness.calibrate(ScriptedProbe(lambda request, time: full))
    assert "unable to write to file" in raised.value.known
    assert "--shm-size" in raised.value.try_


@pytest.mark.parametrize("most", [None, 16, 3, 2])
def test_an_evaluation_error_in_user_code_is_not_reported_as_a_memory_limit(harness: Harness, most: int | None) -> None:
    """Also where so few sizes are left that the search ends with the smallest."""
    error = "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn"
    failed = UserCodeFailed(phase="measure", error=error)
    probe = ScriptedProbe(lambda request, time: failed if request.mode == "eval" else None)
    calibration = harness.calibrate(probe, options(GIB, max_batch=most)).calibration
    assert calibration.status == "complete"
    assert not any("fits into the memory that training" in note for note in calibration.notes)
    (note,) = [note for note in calibration.notes if "fails in each evaluation" in note]
    assert error in note
    assert "torch.enable_grad()" in note


def test_a_kill_by_the_kernel_doubles_the_margin(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="kernel") if request.batch > 300 else None)
    calibration = harness.calibrate(probe).calibration
    assert any("kernel's OOM killer" in note for note in calibration.notes)
    assert calibration.status == "complete"
    budget, asked = calibration.budget(), options(GIB)
    assert budget is not None
    doublings = sum("margin on cpu is doubled" in note for note in calibration.notes)
    assert doublings >= 1
    assert budget.margin_bytes == int(GIB * asked.margin) * 2**doublings
    assert budget.budget_bytes <= GIB - budget.margin_bytes
    finding = calibration.finding()
    assert finding is not None
    assert 1 <= finding.train.batch <= 300
    assert finding.train.peak_bytes <= budget.budget_bytes


def test_sizes_that_fitted_are_not_repeated_after_the_margin_is_doubled(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="kernel") if time == 2 and request.mode == "train" else None)
    calibration = harness.calibrate(probe).calibration
    fitted = [one.batch for one in calibration.measurements if one.mode == "train" and isinstance(one.outcome, Fits)]
    assert len(fitted) == len(set(fitted))
    assert harness.names().count("phase") >= 2


def test_repeated_kernel_kills_stop_doubling_the_margin(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="kernel") if request.batch > 20 else None)
    calibration = harness.calibrate(probe).calibration
    assert sum("is doubled" in note for note in calibration.notes) <= MARGIN_DOUBLINGS
    finding = calibration.finding()
    assert finding is None or finding.train.batch <= 20


def test_inconclusive_sizes_leave_the_calibration_unsettled(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: KILLED if request.batch > 200 and request.mode == "train" else None)
    calibration = harness.calibrate(probe).calibration
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.batch <= 200
    assert calibration.status == "unsettled"
    assert "two runs were inconclusive" in finding.train.undone


def test_a_step_that_hangs_ends_with_the_time_limit(harness: Harness) -> None:
    def hang(request: ProbeRequest, time: int) -> Outcome | None:
        if request.batch <= 200 or request.mode == "eval":
            return None
        assert request.deadline_s is not None
        harness.clock.move(request.deadline_s)
        return TimedOut(phase="measure", limit_s=request.deadline_s)

    finding = found(harness, ScriptedProbe(hang))
    assert 100 <= finding.train.batch <= 200
    assert finding.train.limited_by == "time-limit"
    assert harness.clock.monotonic() == pytest.approx(60 * SHARE_OF_SEARCH["throughput"])


def test_a_timeout_at_the_smallest_batch_is_not_reported_as_too_large(harness: Harness) -> None:
    def late(request: ProbeRequest, time: int) -> Outcome | None:
        harness.clock.move(request.deadline_s or 0.0)
        return TimedOut(phase="measure", limit_s=15, limit_name="the time limit of 60 s (--time-limit)")

    stopped = harness.calibrate(ScriptedProbe(late, train_samples=1)).stopped
    assert isinstance(stopped, Partial)
    assert stopped.what == "the time limit of 60 s (--time-limit) was reached before any batch size was verified"


@pytest.mark.parametrize("capacity", [1, 2, 3, 7])
def test_a_small_capacity_is_not_reported_as_nothing_fits(harness: Harness, capacity: int) -> None:
    """The static curve sees a hundredth of what is needed, and what fails says nothing."""
    probe = ScriptedProbe(
        lambda request, time: OutOfMemory(source="fence") if request.batch > capacity and request.mode == "train" else None
    )
    assert 1 <= found(harness, probe).train.batch <= capacity


def test_nothing_fits_is_raised_after_the_smallest_size_was_run(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="fence"))
    with pytest.raises(NothingFits) as raised:
        harness.calibrate(probe)
    assert min(probe.sizes()) == 1
    assert raised.value.known
    assert raised.value.try_


def test_nothing_fits_names_the_multiple_that_does_not_fit(harness: Harness) -> None:
    with pytest.raises(NothingFits) as raised:
        harness.calibrate(ScriptedProbe(bytes_per_sample=100 * MIB), options(GIB, multiple_of=64))
    assert "batch size 64" in raised.value.what


def test_training_and_evaluation_batches_are_limited_by_their_datasets(harness: Harness) -> None:
    finding = found(harness, ScriptedProbe(train_samples=120, eval_samples=33))
    assert (finding.train.batch, finding.train.limited_by) == (120, "dataset")
    assert finding.eval is not None
    assert (finding.eval.batch, finding.eval.limited_by) == (33, "dataset")


def test_evaluation_is_measured_on_training_data_without_evaluation_data(harness: Harness) -> None:
    finding = found(harness, ScriptedProbe(train_samples=120, eval_samples=None))
    assert finding.eval is not None
    assert finding.eval.batch == 120


def test_a_stream_without_a_length_is_limited_by_memory(harness: Harness) -> None:
    finding = found(harness, ScriptedProbe(train_samples=None, eval_samples=None))
    assert finding.train.limited_by == "memory"


def test_no_batch_larger_than_max_batch_is_tried(harness: Harness) -> None:
    probe = ScriptedProbe(mapped=True)
    finding = found(harness, probe, options(GIB, max_batch=50))
    assert (finding.train.batch, finding.train.limited_by) == (50, "max-batch")
    assert finding.eval is not None
    assert (finding.eval.batch, finding.eval.limited_by) == (50, "max-batch")
    assert max(request.batch for request in probe.requests) == 50


def test_a_search_ended_by_time_is_limited_by_time_and_not_by_memory(harness: Harness) -> None:
    finding = found(harness, ScriptedProbe(clock=harness.clock, takes_s=16.0))
    assert finding.eval is not None
    assert finding.eval.batch < finding.train.batch
    assert finding.eval.limited_by == "time-limit"


@pytest.mark.parametrize("multiple", [8, 64, 100])
def test_training_and_evaluation_batches_follow_multiple_of(harness: Harness, multiple: int) -> None:
    probe = ScriptedProbe()
    finding = found(harness, probe, options(GIB, multiple_of=multiple))
    searched = [request for request in probe.requests if request.samples > TRIAL_STEPS]
    assert {request.mode for request in searched} == {"train", "eval"}
    assert all(request.batch % multiple == 0 for request in searched)
    assert finding.train.batch >= 300


def test_a_multiple_larger_than_the_dataset_gives_the_dataset_size(harness: Harness) -> None:
    assert found(harness, ScriptedProbe(train_samples=20), options(GIB, multiple_of=64)).train.batch == 20


def test_the_evaluation_search_starts_at_the_training_batch_and_grows(harness: Harness) -> None:
    probe = ScriptedProbe(mapped=True)
    finding = found(harness, probe, FOR_MEMORY)
    assert finding.eval is not None
    assert probe.sizes("eval")[0] == finding.train.batch
    assert finding.eval.batch >= 2 * finding.train.batch
    budget = harness.calibrate(probe, FOR_MEMORY).calibration.budget()
    assert budget is not None
    assert finding.eval.peak_bytes <= budget.budget_bytes


def test_evaluation_uses_the_training_batch_for_the_throughput_objective(harness: Harness) -> None:
    probe = ScriptedProbe(mapped=True)
    finding = found(harness, probe)
    assert finding.eval is not None
    assert probe.sizes("eval") == [finding.train.batch]
    assert (finding.eval.batch, finding.eval.limited_by) == (finding.train.batch, "speed")


def test_evaluation_uses_the_training_batch_when_the_heap_fragments(harness: Harness) -> None:
    probe = ScriptedProbe()
    finding = found(harness, probe)
    assert finding.eval is not None
    assert probe.sizes("eval") == [finding.train.batch]
    assert (finding.eval.batch, finding.eval.limited_by) == (finding.train.batch, "memory")


def test_the_evaluation_batch_stops_growing_when_it_gets_no_faster(harness: Harness) -> None:
    probe = FakeProbe(eval_share=0.1, mapped=True)
    finding = found(harness, probe, FOR_MEMORY)
    assert finding.eval is not None
    assert [one.batch for one in probe.requests if one.mode == "eval"] == [finding.train.batch, 2 * finding.train.batch]
    assert (finding.eval.limited_by, finding.eval.undone) == ("speed", "")
    assert harness.calibrate(None, FOR_MEMORY).calibration.status == "complete"


def test_the_evaluation_batch_grows_to_the_memory_limit_while_it_gets_faster(harness: Harness) -> None:
    def steps_of_one_second(request: ProbeRequest, time: int) -> Fits | OutOfMemory | None:
        if request.mode == "train":
            return None
        return fits(request.batch) if request.batch <= 2000 else OutOfMemory(source="fence")

    probe = ScriptedProbe(steps_of_one_second, eval_samples=100_000, mapped=True)
    finding = found(harness, probe, FOR_MEMORY)
    first = finding.train.batch
    assert finding.eval is not None
    assert probe.sizes("eval") == [first, 2 * first, 4 * first, 8 * first][: len(probe.sizes("eval"))]
    assert finding.eval.batch >= 2 * first
    assert finding.eval.limited_by == "memory"


def test_an_evaluation_probe_runs_after_a_training_step(harness: Harness) -> None:
    probe = ScriptedProbe()
    finding = found(harness, probe)
    assert {request.train_batch for request in probe.requests if request.mode == "eval"} == {finding.train.batch}
    assert {request.train_batch for request in probe.requests if request.mode == "train"} == {None}


def test_an_evaluation_batch_below_the_training_batch_is_searched_by_bisection(harness: Harness) -> None:
    probe = ScriptedProbe(
        lambda request, time: OutOfMemory(source="fence") if request.mode == "eval" and request.batch > 150 else None
    )
    finding = found(harness, probe)
    assert finding.eval is not None
    assert finding.eval.batch <= 150 < finding.train.batch


def test_an_evaluation_that_never_fits_keeps_the_training_result(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="fence") if request.mode == "eval" else None)
    finding = found(harness, probe)
    assert finding.eval is None
    assert finding.train.batch > 300


@pytest.mark.parametrize(("workers", "free"), [(1, 64 * MIB), (4, 64 * MIB), (4, 1 * MIB)])
def test_workers_and_prefetched_batches_must_fit_into_shared_memory(harness: Harness, workers: int, free: int) -> None:
    shm = SharedMemory(path="/dev/shm", size_bytes=free, free_bytes=free)
    harness.environment = harness.environment.model_copy(update={"shared_memory": shm})
    per_sample = 1.5 * MIB / 100  # as FakeProbe says
    finding = found(harness, ScriptedProbe(), options(GIB, workers=workers))
    # Each worker has two batches ready and one in the making; one more is in use.
    held = finding.train.batch * per_sample * (workers * 2 + 1)
    assert held <= free or finding.train.batch == 1
    if finding.train.limited_by == "shm":
        assert held >= 0.65 * free


def test_shared_memory_does_not_limit_the_batch_without_workers(harness: Harness) -> None:
    shm = SharedMemory(path="/dev/shm", size_bytes=1, free_bytes=0)
    harness.environment = harness.environment.model_copy(update={"shared_memory": shm})
    assert found(harness, ScriptedProbe(), options(GIB)).train.limited_by == "memory"


def test_a_machine_without_shared_memory_is_limited_by_memory(harness: Harness) -> None:
    harness.environment = harness.environment.model_copy(update={"shared_memory": None})
    assert found(harness, ScriptedProbe(), options(GIB, workers=2)).train.limited_by == "memory"


def test_the_second_allocator_is_skipped_when_no_time_is_left(harness: Harness) -> None:
    probe = ScriptedProbe(clock=harness.clock, takes_s=70)
    calibration = harness.calibrate(probe, options(GIB, allocator="retain")).calibration
    assert [finding.allocator for finding in calibration.findings] == ["retain"]
    assert Undone(part="policy", text="cpu under default: no time was left") in calibration.undone
    assert calibration.status == "unsettled"


@pytest.mark.parametrize("error", [UserCodeError("no kernel for this"), GuardError("no child could be started")])
def test_a_later_failure_keeps_verified_results(harness: Harness, error: BatchcalError) -> None:
    class FailsUnderDefault(ScriptedProbe):
        def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
            if allocator == "default":
                raise error
            return super().examine(device, allocator, budget_bytes, limit_s)

    calibration = harness.calibrate(FailsUnderDefault(), options(GIB, allocator="retain")).calibration
    assert [finding.allocator for finding in calibration.findings] == ["retain"]
    assert calibration.status == "unsettled"
    assert [left.part for left in calibration.undone if error.what in left.text] == ["policy"]


def test_a_size_rejected_under_a_policy_is_not_the_result_of_another_policy(harness: Harness) -> None:
    def script(request: ProbeRequest, time: int) -> Outcome | None:
        if request.allocator == "default":
            return OutOfMemory(source="fence")
        return FAILED if request.batch > 100 else None

    calibration = harness.calibrate(ScriptedProbe(script), options(GIB, allocator="retain")).calibration
    assert [finding.train.limited_by for finding in calibration.findings] == ["model"]
    assert any("nothing fits" in note for note in calibration.notes)


def test_a_probe_deadline_has_a_minimum(harness: Harness) -> None:
    probe = ScriptedProbe(clock=harness.clock, examination_takes_s=33)
    harness.calibrate(probe)
    assert probe.requests[0].deadline_s == DEADLINE_LEAST_S


class SlowProbe(FakeProbe):
    """Takes half a second a sample, and the clock of the harness knows."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(sample_s=0.1, step_overhead_s=0.0)
        self._desk = harness

    def measure(self, request: ProbeRequest) -> Observation:
        report = super().measure(request)
        self._desk.clock.move(report.wall_s)
        return report


def test_a_slow_task_is_limited_by_the_time_limit(harness: Harness) -> None:
    """At 10 samples/s the 371 samples that fit would take two minutes a probe."""
    calibration = harness.calibrate(SlowProbe(harness)).calibration
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.limited_by == "time-limit"
    assert 20 <= finding.train.batch < 371
    for measured in calibration.measurements:
        assert isinstance(measured.outcome, Fits)
        # Of what was run, not of what was wished for.
        assert measured.predicted_bytes == pytest.approx(measured.outcome.peak.demand_bytes, rel=0.25)
    assert calibration.status == "unsettled"
    assert harness.clock.monotonic() <= 1.5 * 60


def test_notes_of_an_examination_are_recorded_once(harness: Harness) -> None:
    class Noticing(ScriptedProbe):
        def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
            examination = super().examine(device, allocator, budget_bytes, limit_s)
            facts = examination.facts.model_copy(update={"notes": ("the dataset pickles to 9 MiB",)})
            return examination.model_copy(update={"notes": ("the model cannot be traced",), "facts": facts})

    calibration = harness.calibrate(Noticing(), options(GIB, allocator="retain")).calibration
    assert calibration.notes == ("the model cannot be traced", "the dataset pickles to 9 MiB")


def test_a_probe_uses_the_requested_number_of_samples(harness: Harness) -> None:
    probe = ScriptedProbe()
    found(harness, probe, options(GIB, samples=5))
    assert {request.samples for request in probe.requests} == {5}


def test_a_device_search_keeps_its_findings(harness: Harness) -> None:
    probe, progress = ScriptedProbe(), Recorded()
    kept: list[Measurement] = []
    budget = Budget(device="cpu", limit_bytes=GIB, others_bytes=0, margin_bytes=0, budget_bytes=GIB, learned_from="here")
    device_search = DeviceSearch(
        attempts=Attempts(probe, progress, kept.append),
        policies=DevicePolicies(probe, options(GIB), harness.clock, progress),
        options=options(GIB),
        environment=harness.environment,
        budgets={"cpu": budget},
        time=SearchTime(harness.clock, until=harness.clock.monotonic() + 60, ends=harness.clock.monotonic() + 60),
        progress=progress,
    )
    device_search.run()
    assert [finding.device for finding in device_search.findings] == ["cpu"]
    assert kept == device_search.attempts.measurements
    assert all(isinstance(one.outcome, Fits | OutOfMemory) for one in kept)


def test_possibly_larger_samples_increase_the_margin(harness: Harness) -> None:
    """A batch of samples twice as large as the largest known has to fit, too."""

    class Tailed(ScriptedProbe):
        def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
            examination = super().examine(device, allocator, budget_bytes, limit_s)
            facts = examination.facts.model_copy(update={"worst_case": "partial-scan", "unseen_factor": 2.0})
            return examination.model_copy(update={"facts": facts})

    memory = options(GIB, objective="memory")
    known = found(Harness(new_folder(harness)), ScriptedProbe(base_bytes=200 * MIB, bytes_per_sample=MIB), memory).train.batch
    calibration = harness.calibrate(Tailed(base_bytes=200 * MIB, bytes_per_sample=MIB), memory, force=True).calibration
    finding = calibration.finding()
    assert finding is not None
    assert 0.4 * known < finding.train.batch <= 0.5 * known
    assert any("may be 2 times as large" in note for note in calibration.notes)
    plan = make_plan(calibration, effective_batch=64)
    assert any(notice.startswith("lower confidence") for notice in plan.notices)


class Changing(ScriptedProbe):
    """Batches change their shapes; the heap holds these bytes after 4, 8, 16, ... steps."""

    def __init__(self, *peaks: int, bytes_per_sample: int = MIB) -> None:
        super().__init__(base_bytes=200 * MIB, bytes_per_sample=bytes_per_sample)
        self.tried: list[HeapRequest] = []
        self._peaks = peaks

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        examination = super().examine(device, allocator, budget_bytes, limit_s)
        return examination.model_copy(update={"shapes_change": True})

    def train_varied(self, request: HeapRequest) -> HeapReport:
        self.tried.append(request)
        readings = tuple(HeapReading(steps=4 << place, peak_bytes=peak) for place, peak in enumerate(self._peaks))
        return HeapReport(readings=readings)


def test_the_budget_reserves_memory_for_heap_growth(harness: Harness) -> None:
    """With batches of changing shapes a plain training held twice what its first steps held, and was killed."""
    memory = options(GIB, objective="memory", allocator="default")
    settled = found(Harness(new_folder(harness)), ScriptedProbe(base_bytes=200 * MIB, bytes_per_sample=MIB), memory).train.batch
    probe = Changing(*([400 * MIB] * 3), *([600 * MIB] * 6))
    calibration = harness.calibrate(probe, memory, force=True).calibration
    finding = calibration.finding()
    assert finding is not None
    assert [request.batch for request in probe.tried] == [settled // 3]
    assert finding.heap_growth == pytest.approx(2)
    assert finding.train.batch > 0.45 * settled
    assert finding.grown_bytes(finding.train.peak_bytes) <= calibration.budgets[0].budget_bytes
    assert any("so the heap grows over many steps" in note for note in calibration.notes)


def test_changing_shapes_without_heap_growth_do_not_change_the_result(harness: Harness) -> None:
    memory = options(GIB, objective="memory", allocator="default")
    settled = found(Harness(new_folder(harness)), ScriptedProbe(base_bytes=200 * MIB, bytes_per_sample=MIB), memory).train.batch
    assert found(harness, Changing(*[400 * MIB] * 5), memory).train.batch == settled


def test_a_result_that_heap_growth_may_exceed_is_kept_with_a_note(harness: Harness) -> None:
    """A single sample fits, and would not if the heap were to grow a hundredfold: there is no smaller answer."""
    memory = options(GIB, objective="memory", allocator="default", max_batch=1)
    probe = Changing(220 * MIB, 400 * MIB, 800 * MIB, bytes_per_sample=600 * MIB)
    calibration = harness.calibrate(probe, memory).calibration
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.batch == 1
    assert finding.heap_growth > 2
    assert any("the result may exceed the budget" in note for note in calibration.notes)


def test_a_failed_heap_trial_keeps_verified_results(harness: Harness) -> None:
    class Failing(Changing):
        def train_varied(self, request: HeapRequest) -> HeapReport:
            raise GuardError("no child process could be started")

    calibration = harness.calibrate(Failing(), options(GIB, objective="memory", allocator="default")).calibration
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.batch > 600
    assert any("is unknown: no child process could be started" in note for note in calibration.notes)


def test_an_interrupted_heap_trial_keeps_verified_results(harness: Harness) -> None:
    class Interrupting(Changing):
        def train_varied(self, request: HeapRequest) -> HeapReport:
            raise Interrupted(2)

    result = harness.calibrate(Interrupting(), options(GIB, objective="memory", allocator="default"))
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.findings[0].train.batch > 600


@pytest.mark.parametrize("peaks", [(), (400 * MIB,), (400 * MIB, 400 * MIB, 400 * MIB)])
def test_too_few_steps_report_unknown_heap_growth(harness: Harness, peaks: tuple[int, ...]) -> None:
    calibration = harness.calibrate(Changing(*peaks), options(GIB, objective="memory", allocator="default")).calibration
    assert any("is unknown: the steps take too long" in note for note in calibration.notes)


def test_no_heap_trial_runs_when_any_growth_fits(harness: Harness) -> None:
    probe = Changing(*[400 * MIB] * 5)
    harness.calibrate(probe, options(GIB, objective="memory", allocator="default", max_batch=100))
    assert probe.tried == []


def test_an_error_in_the_search_for_a_smaller_size_keeps_verified_results(harness: Harness) -> None:
    class Breaking(Changing):
        def measure(self, request: ProbeRequest) -> Observation:
            if self.tried and request.mode == "train":
                raise GuardError("the zygote has died")
            return super().measure(request)

    probe = Breaking(*([400 * MIB] * 3), *([600 * MIB] * 6))
    calibration = harness.calibrate(probe, options(GIB, objective="memory", allocator="default")).calibration
    finding = calibration.finding()
    assert finding is not None
    assert finding.heap_growth == pytest.approx(2)
    assert any("the search for a smaller size failed: the zygote has died" in note for note in calibration.notes)


def test_a_note_reports_that_shapes_could_not_be_compared(harness: Harness) -> None:
    class Slow(Changing):
        def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
            return super().examine(device, allocator, budget_bytes, limit_s).model_copy(update={"shapes_change": None})

    calibration = harness.calibrate(Slow(), options(GIB, objective="memory", allocator="default")).calibration
    assert any("it is unknown whether the shapes of batches change" in note for note in calibration.notes)
