"""Which allocator policy wins: by its own best size, the simpler one where none is faster."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.records.speed import Speeds
from batchcal.core.clock import ManualClock
from batchcal.core.progress import Recorded
from batchcal.core.units import GIB, MIB
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import TimingReport, TimingRequest
from batchcal.measure.race.policies import PolicyRace, sizes_for
from tests.support.calibrations import MADE_AT, step_time

Curve = dict[int, float]
"""Samples per second by micro-batch."""
FALLS: Curve = {16: 1500.0, 64: 2000.0, 256: 900.0, 1024: 700.0}
FLAT: Curve = {16: 1400.0, 64: 1900.0, 256: 2100.0, 1024: 2080.0}


class Track(FakeProbe):
    """Each policy has a curve; one without has none that lives."""

    def __init__(self, curves: dict[str, Curve], clock: ManualClock | None = None, lap_s: float = 1.0) -> None:
        super().__init__()
        self.curves, self.clock, self.lap_s = curves, clock, lap_s
        self.laps: list[TimingRequest] = []

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        self.laps.append(request)
        if self.clock is not None:
            self.clock.move(self.lap_s)
        curve = self.curves.get(request.allocator)
        if curve is None:
            return TimingReport(times=(), why_ended="out-of-memory: fence")
        return TimingReport(times=tuple(step_time(size, size / curve[size]) for size in request.micro_batches))


def race(probe: Track, *, effective: int = 1024, limit_s: float = 60.0) -> tuple[str | None, dict[str, Speeds]]:
    chosen, speeds = PolicyRace(
        probe=probe,
        device="cpu",
        policies=("default", "retain", "tcmalloc"),
        sizes=(16, 64, 256, 1024),
        effective_batch=effective,
        allowed_bytes=GIB,
        limit_s=limit_s,
        clock=probe.clock or ManualClock(MADE_AT),
        progress=Recorded(),
    ).run()
    return chosen, {one.allocator: one for one in speeds}


def test_the_policy_with_the_fastest_best_size_wins() -> None:
    chosen, speeds = race(
        Track({"default": FALLS, "retain": FLAT, "tcmalloc": {size: 0.5 * rate for size, rate in FLAT.items()}})
    )
    assert chosen == "retain"
    fastest = speeds["retain"].fastest(1024)
    assert fastest is not None
    assert (fastest.micro_batch, round(fastest.samples_per_s(1024))) == (256, 2100)
    assert speeds["tcmalloc"].left == "slower"
    assert [time.micro_batch for time in speeds["default"].times] == [16, 64, 256, 1024]


def test_the_simplest_policy_wins_if_all_are_equally_fast() -> None:
    chosen, _ = race(Track(dict.fromkeys(("default", "retain", "tcmalloc"), FLAT)))
    assert chosen == "default"


def test_all_sizes_are_timed_once_and_then_only_the_best_size() -> None:
    probe = Track({"default": FLAT, "retain": FLAT, "tcmalloc": FLAT})
    race(probe)
    asked = [request.micro_batches for request in probe.laps]
    assert asked[:3] == [(16, 64, 256, 1024)] * 3
    assert set(asked[3:]) == {(256,)}


def test_a_policy_that_fails_leaves_the_race_with_the_reason() -> None:
    chosen, speeds = race(Track({"default": FALLS, "tcmalloc": FLAT}))
    assert chosen == "tcmalloc"
    assert (speeds["retain"].left, speeds["retain"].why, speeds["retain"].times) == ("failed", "out-of-memory: fence", ())


def test_the_best_timed_policy_is_chosen_when_the_time_ends() -> None:
    clock = ManualClock(MADE_AT)
    probe = Track({"default": FALLS, "retain": FLAT, "tcmalloc": FLAT}, clock, lap_s=10.0)
    chosen, speeds = race(probe, limit_s=15.0)
    assert [request.allocator for request in probe.laps] == ["tcmalloc", "retain"]
    assert chosen == "tcmalloc", "as fast, and usually faster"
    assert not speeds["default"].times


@pytest.mark.parametrize(("faster", "winner"), [(1.3, "tcmalloc"), (1.6, "default")])
def test_one_timing_beats_the_expected_policy_only_by_a_clear_margin(faster: float, winner: str) -> None:
    curves = {"tcmalloc": FLAT, "retain": FLAT, "default": {size: faster * rate for size, rate in FLAT.items()}}
    assert race(Track(curves, ManualClock(MADE_AT), lap_s=5.0), limit_s=15.0)[0] == winner
    assert race(Track(curves))[0] == "default"


def test_an_empty_timing_does_not_discard_earlier_timings() -> None:
    class Ending(Track):
        def time_sizes(self, request: TimingRequest) -> TimingReport:
            report = super().time_sizes(request)
            return report if len(self.laps) <= 3 else TimingReport(times=())

    halved = {size: rate / 2 for size, rate in FALLS.items()}
    chosen, speeds = race(Ending({"default": FALLS, "retain": FLAT, "tcmalloc": halved}))
    assert chosen == "retain"
    assert speeds["retain"].left == ""


def test_no_policy_is_chosen_if_none_runs() -> None:
    assert race(Track({}))[0] is None


@pytest.mark.parametrize(
    ("ceiling", "multiple", "sizes"),
    [
        (10_000, 1, (16, 64, 256)),
        (200, 1, (16, 64, 200)),
        (100, 1, (16, 64)),
        (7, 1, (7,)),
        (10_000, 24, (24, 96, 240)),
    ],
)
def test_raced_sizes_use_at_most_half_of_the_budget(ceiling: int, multiple: int, sizes: tuple[int, ...]) -> None:
    shape = (ShapePoint(batch=1, bytes=MIB), ShapePoint(batch=2, bytes=2 * MIB))
    model = MemoryModel(base_bytes=200 * MIB, ratio=1.0, shape=shape, source="assumed")
    assert sizes_for(model, budget_bytes=712 * MIB, ceiling=ceiling, multiple_of=multiple) == sizes
    huge = model.model_copy(update={"ratio": 0.0001})
    assert sizes_for(huge, budget_bytes=GIB, ceiling=1 << 20) == (16, 64, 256)


def test_the_fastest_step_counts_and_one_update_is_shared_by_the_group() -> None:
    once = step_time(10, 0.2, update_s=0.1, steps=2)
    again = step_time(10, 0.1, update_s=0.2, steps=3)
    both = once.or_better(again)
    assert (both.step_s, both.update_s, both.steps) == (0.1, 0.1, 5)
    assert both.samples_per_s(10) == pytest.approx(50)
    assert both.samples_per_s(100) == pytest.approx(10 / 0.11)
    assert both.samples_per_s(1) == both.samples_per_s(10)


def test_one_policy_is_timed_even_if_starting_policies_uses_all_the_time() -> None:
    class SlowToStart(Track):
        def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
            clock.move(30.0)

    clock = ManualClock(MADE_AT)
    chosen, speeds = race(SlowToStart({"default": FALLS, "retain": FLAT}, clock), limit_s=10.0)
    assert chosen == "retain"
    assert {name for name, one in speeds.items() if one.times} == {"retain"}


def test_no_policy_is_timed_without_time() -> None:
    probe = Track({"default": FALLS})
    assert race(probe, limit_s=0.0)[0] is None
    assert probe.laps == []
