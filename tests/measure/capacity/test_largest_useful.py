"""A calibration for throughput ends where larger batches are not faster."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.speed import Speeds, StepTime
from batchcal.core.errors import NoCalibration
from batchcal.core.units import GIB, MIB
from batchcal.measure.children.probe import Examination, TimingReport, TimingRequest
from batchcal.measure.options import options
from batchcal.plan.make import answers, make_plan
from tests.support.probes import Harness, ScriptedProbe

OK = (PromiseCheck(promise="mean-over-weight", result="ok"), PromiseCheck(promise="batch-statistics", result="ok"))
WITH_BATCH_NORM = (OK[0], PromiseCheck(promise="batch-statistics", result="violated", cause="BatchNorm2d"))


def speeds(*step_s: tuple[int, float]) -> Speeds:
    times = tuple(
        StepTime(micro_batch=size, threads=2, step_s=seconds, fetch_s=0.0, fetch_cpu_s=0.0, update_s=1e-4, steps=3)
        for size, seconds in step_s
    )
    return Speeds(device="cpu", allocator="default", times=times, rounds=1, left="")


@pytest.mark.parametrize(
    ("times", "largest"),
    [
        (speeds((16, 0.016), (64, 0.064), (256, 0.256)), 256),  # no overhead at all
        (speeds((16, 0.026), (64, 0.074), (256, 0.266)), None),  # 256 takes 4 % more per sample than the largest batches would
        (speeds((16, 0.016), (64, 0.064), (256, 0.300)), 256),  # large batches are slower
        (speeds((16, 0.0386), (64, 0.1634), (256, 0.5397)), 256),  # a CNN on two cores, with noise of 8 %
        (speeds((16, 0.100), (64, 0.090)), None),  # noise: nothing follows
        (speeds((16, 0.033), (64, 0.200)), 64),  # texts: what 64 of them are padded to costs half as much again for each
        (speeds((16, 0.033), (64, 0.180)), None),  # one of the two turns may be off
        (speeds((16, 0.016)), None),
        (speeds(), None),
    ],
)
def test_larger_sizes_are_not_useful_after_step_overhead_is_negligible(times: Speeds, largest: int | None) -> None:
    assert times.largest_useful == largest


class Flat(ScriptedProbe):
    """Each sample takes a millisecond, whatever the batch."""

    def __init__(self, promises: tuple[PromiseCheck, ...] = OK) -> None:
        super().__init__(bytes_per_sample=MIB / 4)
        self._promises = promises

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        return super().examine(device, allocator, budget_bytes, limit_s).model_copy(update={"promises": self._promises})

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        times = super().time_sizes(request).times
        return TimingReport(times=tuple(time.model_copy(update={"step_s": time.micro_batch * 0.001}) for time in times))


def test_a_calibration_for_throughput_runs_no_size_that_cannot_be_faster(harness: Harness) -> None:
    probe = Flat()
    calibration = harness.calibrate(probe, options(GIB, allocator="default")).calibration
    finding = calibration.finding()
    assert finding is not None
    assert (finding.train.batch, finding.train.limited_by) == (256, "speed")
    assert max(probe.sizes("train")) == 256
    assert calibration.status == "complete"
    assert calibration.unanswered == ("memory",)
    plan = make_plan(calibration, effective_batch=1024)
    assert plan.limited_by == "speed"
    assert sum(plan.micro_batches) == 1024


@pytest.mark.parametrize("promises", [(), (OK[0],), WITH_BATCH_NORM])
def test_the_largest_batch_is_measured_if_dividing_may_change_training(
    harness: Harness, promises: tuple[PromiseCheck, ...]
) -> None:
    finding = harness.calibrate(Flat(promises), options(GIB, allocator="default")).calibration.finding()
    assert finding is not None
    assert finding.train.batch > 1000


def test_the_largest_batch_is_measured_when_it_is_requested(harness: Harness) -> None:
    by_speed = harness.calibrate(Flat(), options(GIB, allocator="default")).calibration
    assert not answers(by_speed, "memory")
    with pytest.raises(NoCalibration, match="largest micro-batch was not measured") as refused:
        make_plan(by_speed, effective_batch=512, objective="memory")
    assert "--objective memory" in refused.value.try_
    by_memory = harness.calibrate(Flat(), options(GIB, allocator="default", objective="memory")).calibration
    assert by_memory.findings[0].train.batch > 1000
    assert answers(by_memory, "memory")
    assert make_plan(by_memory, effective_batch=4096, objective="memory").micro_batch > 1000


def test_no_size_above_the_effective_batch_is_run_for_throughput(harness: Harness) -> None:
    """Larger batches are faster here, but no step has more samples."""

    class Rising(Flat):
        def time_sizes(self, request: TimingRequest) -> TimingReport:
            times = super().time_sizes(request).times
            return TimingReport(times=tuple(time.model_copy(update={"step_s": 0.1 + time.micro_batch * 0.001}) for time in times))

    probe = Rising()
    calibration = harness.calibrate(probe, options(GIB, effective_batch=48)).calibration
    finding = calibration.finding()
    assert finding is not None
    assert max(probe.sizes()) == finding.train.batch == 48
    assert finding.train.limited_by == "speed"
    assert calibration.status == "complete"


def test_the_search_ends_at_the_multiple_above_the_effective_batch(harness: Harness) -> None:
    probe = Flat()
    finding = harness.calibrate(probe, options(GIB, effective_batch=100, multiple_of=32)).calibration.finding()
    assert finding is not None
    assert finding.train.batch == 128


def test_a_calibration_below_min_micro_batch_is_not_reused(harness: Harness) -> None:
    asked = options(GIB, effective_batch=48)
    harness.calibrate(Flat(), asked)
    again = harness.calibrate(Flat(), asked.model_copy(update={"min_micro_batch": 100, "effective_batch": 200}))
    assert not again.fresh
    finding = again.calibration.finding()
    assert finding is not None
    assert finding.train.batch >= 100
