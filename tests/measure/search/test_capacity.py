"""The search against machines that are numbers: safe, near the truth, and in few probes."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.measure.search.capacity import EXPANSION, Bounds, CapacitySearch, SizeRequest
from batchcal.measure.search.fit import OVERHEAD

MIB = 1 << 20


@dataclass
class Machine:
    """Needs base + ratio x bytes(batch), with noise; above the budget it may or may not live to say by how much."""

    base: float
    ratio: float
    per_sample: float
    budget: float
    noise: float = 0.0
    quadratic: float = 0.0
    tells_above: float = 1.04
    seed: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def paper(self, batch: int) -> float:
        return self.per_sample * batch + self.quadratic * batch * batch

    def demand(self, batch: int) -> float:
        return self.base + self.ratio * self.paper(batch)

    def run(self, batch: int) -> int:
        return int(self.base + self.ratio * self.paper(batch) * (1 + self._chance.uniform(-self.noise, self.noise)))

    def capacity(self, ceiling: int) -> int:
        low, high = 0, ceiling + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.demand(middle) <= self.budget else (low, middle)
        return low


def search_for(
    machine: Machine, *, ceiling: int = 60_000, multiple_of: int = 1, base_error: float = 1.0, spread: float = 0.06
) -> CapacitySearch:
    bounds = Bounds(
        budget_bytes=int(machine.budget),
        floor=multiple_of,
        ceiling=ceiling,
        ceiling_reason="dataset",
        multiple_of=multiple_of,
        headroom=0.6,
    )
    near = machine.capacity(ceiling)  # the examination traces around the expected cap, too
    sizes = sorted({2, 4, 8, 32, 128, 512, 2048, max(near // 2, 1), near + 1, near * 3 // 2 + 1})
    return CapacitySearch(
        bounds,
        [ShapePoint(batch=size, bytes=machine.paper(size)) for size in sizes],
        base_bytes=machine.base * base_error,
        source="test",
        prior_ratio=1.15,
        spread=spread,
    )


def explore(search: CapacitySearch, machine: Machine) -> list[SizeRequest]:
    asked: list[SizeRequest] = []
    while (request := search.next_request()) is not None:
        asked.append(request)
        assert len(asked) <= 12, "the search does not end"
        demand = machine.run(request.batch)
        if demand <= machine.budget:
            search.add(request.batch, "fits", demand)
        else:
            search.add(request.batch, "too-big", demand if demand <= machine.budget * machine.tells_above else None)
    return asked


@pytest.mark.parametrize(("spread", "least"), [(0.005, 0.975), (0.06, 0.91)])
def test_a_linear_memory_model_needs_two_probes_and_leaves_a_margin(spread: float, least: float) -> None:
    machine = Machine(base=230 * MIB, ratio=1.1, per_sample=1.5 * MIB, budget=870 * MIB)
    search = search_for(machine, spread=spread, base_error=1 - OVERHEAD / machine.base)
    asked = explore(search, machine)
    assert [request.phase for request in asked] == ["scale", "verify"]
    assert search.best is not None
    assert least <= search.best / machine.capacity(60_000) <= 1


@settings(deadline=None)
@given(
    base=st.floats(180 * MIB, 400 * MIB),
    ratio=st.floats(0.9, 1.6),
    per_sample=st.floats(10_000, 10_000_000),
    room=st.floats(60 * MIB, 7000 * MIB),
    noise=st.sampled_from([0.0, 0.005, 0.03]),
    base_error=st.floats(0.9, 1.1),
    seed=st.integers(0, 1000),
)
def test_the_result_was_measured_and_is_near_the_true_capacity(
    *, base: float, ratio: float, per_sample: float, room: float, noise: float, base_error: float, seed: int
) -> None:
    machine = Machine(base, ratio, per_sample, base + room, noise, seed=seed)
    search = search_for(machine, base_error=base_error)
    asked = explore(search, machine)
    truth = machine.capacity(60_000)
    if search.best is None:
        assert truth <= 1
        return
    assert search.best in [request.batch for request in asked]
    if truth >= 16:
        assert search.best >= 0.85 * truth
    assert len(asked) <= 8


def test_the_search_follows_a_quadratic_memory_curve() -> None:
    machine = Machine(base=250 * MIB, ratio=1.05, per_sample=20_000, quadratic=40.0, budget=4000 * MIB)
    search = search_for(machine)
    asked = explore(search, machine)
    assert search.best is not None
    assert search.best / machine.capacity(60_000) > 0.95
    assert len(asked) <= 4


def test_no_probe_is_larger_than_four_times_the_largest_success() -> None:
    machine = Machine(base=230 * MIB, ratio=0.5, per_sample=1.0 * MIB, budget=8000 * MIB)
    # The static curve says four times what is true, so the first probes are far too small.
    bounds = Bounds(int(machine.budget), 1, 60_000, "dataset", 1, 0.6)
    shape = [ShapePoint(batch=size, bytes=machine.paper(size) * 40) for size in (2, 8, 32)]
    search = CapacitySearch(bounds, shape, base_bytes=machine.base, source="test", prior_ratio=1.15, spread=0.06)
    asked = explore(search, machine)
    best = 0
    for request in asked:
        assert best == 0 or request.batch <= best * EXPANSION
        best = request.batch
    assert "expand" in [request.phase for request in asked]
    assert search.best is not None
    assert search.best / machine.capacity(60_000) > 0.9


def test_a_dataset_that_fits_as_one_batch_needs_one_probe() -> None:
    machine = Machine(base=230 * MIB, ratio=1.1, per_sample=0.1 * MIB, budget=6000 * MIB)
    search = search_for(machine, ceiling=1500)
    asked = explore(search, machine)
    assert [request.batch for request in asked] == [1500]
    assert search.best == 1500
    assert search.limited_by == "dataset"


def test_search_results_are_multiples_of_the_requested_number() -> None:
    machine = Machine(base=230 * MIB, ratio=1.1, per_sample=1.5 * MIB, budget=870 * MIB)
    search = search_for(machine, multiple_of=16)
    asked = explore(search, machine)
    assert all(request.batch % 16 == 0 for request in asked)
    assert search.best is not None
    assert search.best >= 0.9 * machine.capacity(60_000)


def test_the_search_bisects_below_a_size_that_does_not_fit() -> None:
    machine = Machine(base=230 * MIB, ratio=1.6, per_sample=4 * MIB, budget=870 * MIB, tells_above=1.0)
    bounds = Bounds(int(machine.budget), 1, 60_000, "dataset", 1, 0.6)
    # The curve sees a third of what is needed: the first probe already fails.
    shape = [ShapePoint(batch=size, bytes=machine.paper(size) / 3) for size in (2, 8, 32)]
    search = CapacitySearch(bounds, shape, base_bytes=machine.base, source="test", prior_ratio=1.15, spread=0.06)
    asked = explore(search, machine)
    assert "bisect" in [request.phase for request in asked]
    assert search.best is not None
    assert search.best / machine.capacity(60_000) > 0.85
    assert search.limited_by == "memory"


def test_the_next_size_is_interpolated_between_a_fitting_and_a_failing_run() -> None:
    """The model, which meets the largest run, says that nothing above 600 fits; the runs themselves say 660."""
    machine = Machine(base=230 * MIB, ratio=1.0, per_sample=1 * MIB, budget=900 * MIB)
    search = search_for(machine)
    search.add(600, "fits", 820 * MIB)
    search.add(720, "too-big", 980 * MIB)
    request = search.next_request()
    assert request is not None
    assert 635 <= request.batch <= 660
    assert request.predicted_bytes == pytest.approx(820 * MIB + (request.batch - 600) * 160 * MIB / 120, rel=1e-3)
    assert request.predicted_bytes <= machine.budget
    search.add(request.batch, "fits", round(request.predicted_bytes))
    assert search.next_request() is None


def test_a_search_in_which_nothing_fits_has_no_result() -> None:
    machine = Machine(base=500 * MIB, ratio=1.0, per_sample=100 * MIB, budget=550 * MIB)
    search = search_for(machine, base_error=0.8)
    explore(search, machine)
    assert search.best is None


def test_a_rejected_size_limits_the_search_by_model() -> None:
    machine = Machine(base=230 * MIB, ratio=1.1, per_sample=1.5 * MIB, budget=4000 * MIB)
    search = search_for(machine)
    asked = []
    while (request := search.next_request()) is not None:
        asked.append(request.batch)
        if request.batch > 1500:
            search.add(request.batch, "refused")
        else:
            search.add(request.batch, "fits", machine.run(request.batch))
    assert search.limited_by == "model"
    assert search.best is not None
    assert search.best <= 1500


def test_inconclusive_probes_change_no_bound_and_end_the_search() -> None:
    machine = Machine(base=230 * MIB, ratio=1.1, per_sample=1.5 * MIB, budget=870 * MIB)
    search = search_for(machine)
    asked = 0
    while (request := search.next_request()) is not None:
        asked += 1
        search.add(request.batch, "unknown")
    assert asked == 2
    assert search.best is None
    assert search.upper == 60_001


def test_a_smaller_size_is_tried_after_an_inconclusive_probe() -> None:
    machine = Machine(base=230 * MIB, ratio=1.1, per_sample=1.5 * MIB, budget=870 * MIB)
    search = search_for(machine)
    told_nothing: list[int] = []
    while (request := search.next_request()) is not None:
        if request.batch > 150:
            told_nothing.append(request.batch)
            search.add(request.batch, "unknown")
        else:
            search.add(request.batch, "fits", machine.run(request.batch))
    assert told_nothing == sorted(set(told_nothing), reverse=True)
    assert search.limited_by == "time-limit"


@pytest.mark.parametrize("capacity", range(1, 12))
def test_small_capacities_are_exact_or_one_too_small(capacity: int) -> None:
    machine = Machine(base=250 * MIB, ratio=1.1, per_sample=50 * MIB, budget=(250 + 1.1 * 50 * (capacity + 0.5)) * MIB)
    search = search_for(machine)
    explore(search, machine)
    assert search.best is not None
    assert capacity - 1 <= search.best <= capacity


def test_a_search_with_coarse_precision_halves_the_size() -> None:
    """Evaluation in a heap that training has fragmented: 8 probes by tenths, and each trains first."""
    bounds = Bounds(
        budget_bytes=870 * MIB,
        floor=1,
        ceiling=200,
        ceiling_reason="memory",
        multiple_of=1,
        headroom=0.6,
        precision=0.75,
        start=200,
    )
    shape = [ShapePoint(batch=size, bytes=size * MIB) for size in (1, 200)]
    search = CapacitySearch(bounds, shape, base_bytes=230 * MIB, source="test", prior_ratio=1.5, spread=0.06)
    sizes: list[int] = []
    while (request := search.next_request()) is not None:
        sizes.append(request.batch)
        over = request.batch > 60
        search.add(request.batch, "too-big" if over else "fits", (900 if over else 800) * MIB)
    assert sizes[:3] == [200, 100, 50]
    assert search.best is not None


def test_a_search_that_skips_a_small_gain_is_limited_by_the_ceiling() -> None:
    """An evaluation ran at 256 of 360 samples, in 20 GiB."""
    bounds = Bounds(
        budget_bytes=20_000 * MIB,
        floor=1,
        ceiling=360,
        ceiling_reason="dataset",
        multiple_of=1,
        headroom=0.6,
        precision=0.75,
        start=256,
    )
    shape = (ShapePoint(batch=8, bytes=8.0 * MIB), ShapePoint(batch=64, bytes=64.0 * MIB))
    search = CapacitySearch(bounds, shape, base_bytes=300 * MIB, source="test", prior_ratio=1.0, spread=0.06)
    request = search.next_request()
    assert request is not None
    assert request.batch == 256
    search.add(256, "fits", 600 * MIB)
    assert search.next_request() is None
    assert search.limited_by == "dataset"
