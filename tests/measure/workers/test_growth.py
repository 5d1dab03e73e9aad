"""What a process comes to hold, from a few readings."""

from __future__ import annotations

import pytest

from batchcal.core.units import MIB
from batchcal.measure.workers.growth import NOISE_BYTES, MemoryPoint, at_most, kept_per_sample


def line(*, per_sample: float, start: int = 10 * MIB, read: int = 1000, readings: int = 11) -> list[MemoryPoint]:
    step = read // (readings - 1)
    return [MemoryPoint(step * n, start + int(step * n * per_sample)) for n in range(readings)]


def test_growth_is_extrapolated_to_the_last_sample() -> None:
    points = line(per_sample=8192.0)
    assert at_most(points, 100_000, bound_bytes=1 << 40) == pytest.approx(100_000 * 8192, rel=0.25)
    assert at_most(points, 1000, bound_bytes=1 << 40) == 1000 * 8192, "all samples are read"


def test_the_growth_of_a_worker_is_at_most_the_memory_that_can_be_copied() -> None:
    points = line(per_sample=8192.0)
    copied = points[-1].held_bytes - points[0].held_bytes
    assert at_most(points, 10**9, bound_bytes=100 * MIB) == 100 * MIB
    assert at_most(points, 10**9, bound_bytes=MIB) == copied, "the bound does not undo a measurement"


def test_a_short_reading_includes_possible_growth_in_the_bound() -> None:
    still = line(per_sample=0.0, read=20)
    assert at_most(still, 10_000_000, bound_bytes=300 * MIB) == 300 * MIB
    many = line(per_sample=0.0, read=50_000)
    assert at_most(many, 60_000, bound_bytes=300 * MIB) <= NOISE_BYTES


def test_the_bound_without_readings_is_all_memory_that_can_be_copied() -> None:
    assert at_most([], 1000, bound_bytes=7 * MIB) == 7 * MIB


def test_steady_growth_is_counted_as_a_cache() -> None:
    assert kept_per_sample(line(per_sample=65_536.0)) == pytest.approx(65_536.0)


@pytest.mark.parametrize(
    "held",
    [
        [0] * 10,
        [0, 0, 0, 0, 40, 40, 40, 40, 40, 40],
        [0, 10, 20, 30, 30, 30, 30, 30, 30, 30],
        [50, 40, 30, 20, 10, 0, 0, 0, 0, 0],
    ],
    ids=["still", "one jump", "settles", "falls"],
)
def test_unsteady_growth_is_not_counted_as_a_cache(held: list[int]) -> None:
    assert kept_per_sample([MemoryPoint(n * 10, mib * MIB) for n, mib in enumerate(held)]) == 0
