"""Micro-batches that are timed in a real child."""

from __future__ import annotations

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.measure.children.probe import TimingReport, TimingRequest
from tests.support.children import probing

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]

HANDWRITING = "batchcal.workload.examples.handwriting:task"


def lap(spec: str, *sizes: int, allocator: str = "default", allowed: int = GIB, limit_s: float = 20.0) -> TimingReport:
    with probing(spec) as probe:
        return probe.time_sizes(
            TimingRequest(device="cpu", allocator=allocator, micro_batches=sizes, allowed_bytes=allowed, limit_s=limit_s)
        )


@pytest.mark.smoke("job:batchcal.measure.race.timing_job:time_sizes")
def test_every_size_is_timed_separately() -> None:
    report = lap(HANDWRITING, 8, 32)
    assert report.why_ended == ""
    assert [time.micro_batch for time in report.times] == [8, 32]
    small, large = report.times
    assert large.step_s > small.step_s
    assert min(small.steps, large.steps) >= 2
    assert large.samples_per_s(32) > 50
    assert small.samples_per_s(1024) >= small.samples_per_s(8)


def test_an_out_of_memory_size_ends_the_timing_and_keeps_earlier_times() -> None:
    report = lap(HANDWRITING, 8, 4096, allowed=500 * MIB)
    assert [time.micro_batch for time in report.times] == [8]
    assert report.why_ended.startswith("out-of-memory: fence")


def test_no_further_size_starts_after_the_time_limit() -> None:
    report = lap(HANDWRITING, 8, 16, 32, limit_s=0.0)
    assert [time.micro_batch for time in report.times] == [8]


def test_each_policy_is_timed_in_its_own_process() -> None:
    with probing(HANDWRITING) as probe:
        for allocator in ("default", "retain", "default"):
            request = TimingRequest(device="cpu", allocator=allocator, micro_batches=(8,), allowed_bytes=GIB, limit_s=20.0)
            assert probe.time_sizes(request).times


def test_a_task_that_fails_has_no_times_and_reports_the_reason() -> None:
    report = lap("failing", 8)
    assert report.times == ()
    assert report.why_ended.startswith("user-code-failed: ")


def test_every_size_is_timed_over_the_requested_samples() -> None:
    with probing(HANDWRITING) as probe:
        request = TimingRequest(
            device="cpu", allocator="default", micro_batches=(8, 32), samples=128, allowed_bytes=GIB, limit_s=20.0
        )
        report = probe.time_sizes(request)
    assert [time.micro_batch for time in report.times[:2]] == [8, 32]
    # More than once where somebody else was in the way.
    assert all(time.steps * time.micro_batch % 128 == 0 for time in report.times)


def test_raced_sizes_alternate_and_slow_sizes_leave() -> None:
    with probing(HANDWRITING) as probe:
        request = TimingRequest(
            device="cpu",
            allocator="retain",
            micro_batches=(1, 32),
            threads=(1,),
            rounds=4,
            samples=16,
            allowed_bytes=GIB,
            limit_s=20.0,
        )
        report = probe.time_sizes(request)
    assert report.why_ended == ""
    sizes = [time.micro_batch for time in report.times]
    assert set(sizes[:2]) == set(sizes[2:4]) == {1, 32}
    assert sizes.count(1) <= sizes.count(32) + 1, "the time may end within a round"


def test_thread_counts_are_timed_together_and_fetch_time_separately() -> None:
    with probing(HANDWRITING) as probe:
        request = TimingRequest(
            device="cpu", allocator="default", micro_batches=(32,), threads=(2, 1), allowed_bytes=GIB, limit_s=20.0
        )
        report = probe.time_sizes(request)
    assert [time.threads for time in report.times] == [2, 1]
    assert all(0 < time.fetch_s < time.step_s for time in report.times)
