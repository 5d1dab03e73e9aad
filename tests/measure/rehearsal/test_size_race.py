"""Which micro-batches are raced, and what a lap in rounds says of them."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.rehearsal import SizeRace
from batchcal.calibration.records.speed import Speeds, StepTime
from batchcal.core.clock import ManualClock
from batchcal.core.progress import Recorded
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import TimingReport, TimingRequest
from batchcal.measure.rehearsal.size_race import around, race_sizes, run_in_turns
from batchcal.measure.rehearsal.stage import Stage
from batchcal.plan.plan import Plan
from tests.support.calibrations import MADE_AT, step_time
from tests.support.plans import a_plan

CURVE = {16: 899.0, 32: 971.0, 64: 1006.0, 128: 1002.0, 256: 967.0, 512: 937.0}
"""Samples/s of a small CNN under tcmalloc."""


@pytest.mark.parametrize(
    ("fastest", "largest", "multiple", "sizes"),
    [
        (64, 512, 1, (32, 64, 128, 512)),
        (16, 512, 1, (8, 16, 32, 512)),
        (256, 256, 1, (128, 256)),
        (7, 512, 1, (7, 14, 512)),
        (96, 480, 24, (48, 96, 192, 480)),
    ],
)
def test_sizes_around_the_fastest_timed_size_are_raced(fastest: int, largest: int, multiple: int, sizes: tuple[int, ...]) -> None:
    assert around(fastest, largest, multiple_of=multiple) == sizes


class Track(FakeProbe):
    """Runs laps in rounds by `CURVE`; sizes from `too_large` on end a lap while they are warmed up."""

    def __init__(self, slow_rounds: frozenset[int] = frozenset(), too_large: int = 1 << 30) -> None:
        super().__init__()
        self.slow_rounds, self.too_large = slow_rounds, too_large
        self.laps: list[TimingRequest] = []

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        self.laps.append(request)
        if any(size >= self.too_large for size in request.micro_batches):
            return TimingReport(times=(), why_ended="out-of-memory: fence")
        times: list[StepTime] = []
        for number in range(1 if request.complete else 5):
            factor = 0.6 if number in self.slow_rounds else 1.0
            times.extend(step_time(size, size / (CURVE[size] * factor), update_s=1e-9) for size in request.micro_batches)
        return TimingReport(times=tuple(times))


def speeds(*sizes: int, allocator: str = "tcmalloc") -> Speeds:
    times = tuple(step_time(size, size / CURVE[size]) for size in sizes)
    return Speeds(device="cpu", allocator=allocator, times=times, rounds=1, left="", why="", disturbed=0)


def stage_of(probe: Track) -> Stage:
    return Stage(probe, ManualClock(MADE_AT), Recorded(), until=60.0 + ManualClock(MADE_AT).monotonic())


def plan(allocator: str = "tcmalloc") -> Plan:
    return a_plan(*(64,) * 8, allocator=allocator, intra_op_threads=2)


def raced(probe: Track, allocator: str = "tcmalloc") -> SizeRace:
    found = race_sizes(stage_of(probe), plan(allocator), speeds(16, 64, 256, allocator=allocator), 600)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("slow", [frozenset[int](), frozenset({0, 1, 3})], ids=["steady", "slow-for-a-while"])
def test_the_fastest_size_wins_in_one_child_process(slow: frozenset[int]) -> None:
    probe = Track(slow)
    race = raced(probe)
    assert [one.micro_batch for one in race.sizes] == [16, 32, 64, 128, 256, 512]
    assert race.fastest(512) == 64
    assert len(probe.laps) == 1
    assert probe.laps[0].threads == (2,)


def test_sizes_that_were_timed_much_slower_are_not_raced() -> None:
    probe = Track()
    slow = [step_time(16, 16 / 300), step_time(64, 64 / 1006), step_time(256, 256 / 960), step_time(512, 512 / 300)]
    timed = Speeds(device="cpu", allocator="tcmalloc", times=tuple(slow), rounds=1, left="", why="", disturbed=0)
    found = race_sizes(stage_of(probe), plan(), timed, 600)
    assert found is not None
    assert [one.micro_batch for one in found[0].sizes] == [32, 64, 128, 256]


def test_a_size_that_runs_out_of_memory_is_excluded_with_the_reason() -> None:
    probe = Track(too_large=512)
    race = raced(probe)
    assert race.fastest(512) == 64
    assert (race.sizes[-1].micro_batch, race.sizes[-1].samples_per_s) == (512, None)
    assert "out-of-memory" in race.sizes[-1].why


def test_policies_that_return_memory_use_one_child_per_round() -> None:
    probe = Track()
    race = raced(probe, "default")
    assert [one.micro_batch for one in race.sizes] == [16, 64, 256, 512]
    assert race.fastest(512) == 64
    assert len(probe.laps) >= 2
    assert all(request.complete and request.rounds == 0 for request in probe.laps)
    assert all(list(request.micro_batches) == sorted(request.micro_batches) for request in probe.laps)


def test_a_size_that_fails_in_a_child_per_round_is_excluded_with_the_reason() -> None:
    class Dies(Track):
        def time_sizes(self, request: TimingRequest) -> TimingReport:
            kept = request.model_copy(update={"micro_batches": tuple(size for size in request.micro_batches if size < 512)})
            ended = "out-of-memory: fence" if kept.micro_batches != request.micro_batches else ""
            return super().time_sizes(kept).model_copy(update={"why_ended": ended})

    race = raced(Dies(), "default")
    assert (race.sizes[-1].micro_batch, race.sizes[-1].samples_per_s) == (512, None)
    assert "out-of-memory" in race.sizes[-1].why
    assert race.fastest(512) == 64


def test_a_single_size_is_not_raced() -> None:
    assert race_sizes(stage_of(Track()), a_plan(8, allocator="tcmalloc"), speeds(16, 64), 600) is None


def test_rounds_are_counted_correctly_after_a_size_has_left() -> None:
    times = [step_time(size, seconds) for size, seconds in [(2, 0.2), (4, 0.1), (4, 0.2), (2, 0.1), (4, 0.3), (4, 0.4)]]
    race = run_in_turns(times, (2, 4), 4)
    assert race.rounds == 4
    assert set(race.runners[0].times) == {0, 1}
    assert set(race.runners[1].times) == {0, 1, 2, 3}


def test_disturbed_timings_count_only_if_there_are_no_others() -> None:
    slow = {"foreign_share": 0.4}
    times = [step_time(2, 0.9).model_copy(update=slow), step_time(4, 0.4), step_time(4, 0.9).model_copy(update=slow)]
    race = run_in_turns([*times, step_time(2, 0.1)], (2, 4), 4)
    assert [len(runner.times) for runner in race.runners] == [1, 1]
    assert race.leader == 0
    alone = run_in_turns([step_time(2, 0.9).model_copy(update=slow), step_time(4, 0.4)], (2, 4), 4)
    assert [len(runner.times) for runner in alone.runners] == [1, 1]
