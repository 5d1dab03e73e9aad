"""What a batch will need is learned from what batches needed."""

from __future__ import annotations

import random

import pytest

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.core.units import MIB
from batchcal.train.memory.composition import Composition
from batchcal.train.memory.predictor import MemoryPredictor, straight_line

SAMPLE = 1000
"""Padded bytes of one of the largest samples."""


def a_model(base: float, each: float) -> MemoryModel:
    return MemoryModel(
        base_bytes=base,
        ratio=1.0,
        shape=(ShapePoint(batch=0, bytes=0), ShapePoint(batch=100, bytes=100 * each)),
        source="measured",
    )


def a_batch(samples: int, length: float = 1.0, group: str = "") -> Composition:
    return Composition(samples, round(samples * SAMPLE * length), group)


def test_the_first_prediction_comes_from_the_calibration() -> None:
    predictor = MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE)
    assert predictor.predict(a_batch(50)) == pytest.approx(150 * MIB)
    assert predictor.predict(a_batch(50, length=0.5)) == pytest.approx(125 * MIB), "half as long, half as much"
    assert predictor.error() is None
    assert not predictor.stable()


def test_predictions_are_within_three_percent_after_ten_batches_of_a_group() -> None:
    """True: another base, padding costs 0.8 of what was thought, each sample 0.2 whatever its length."""
    predictor = MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE)
    generator = random.Random(4)

    def true(batch: Composition) -> float:
        return 108 * MIB + 0.8 * MIB * batch.padded_bytes / SAMPLE + 0.2 * MIB * batch.samples

    for _ in range(10):
        batch = a_batch(generator.randrange(8, 100), generator.uniform(0.2, 1.0), "long")
        predictor.observe(batch, round(true(batch) * generator.gauss(1, 0.005)))
    assert predictor.stable("long")
    unseen = [a_batch(size, length, "long") for size in (10, 40, 90) for length in (0.2, 0.6, 1.0)]
    assert max(abs(predictor.predict(batch) / true(batch) - 1) for batch in unseen) < 0.03


def test_groups_are_learned_separately_and_a_new_group_uses_all_observations() -> None:
    predictor = MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE)
    for size in range(10, 110, 10):
        predictor.observe(a_batch(size, group="small"), round((100 + 0.8 * size) * MIB))
        predictor.observe(a_batch(size, group="large"), round((100 + 1.2 * size) * MIB))
    at = 80
    small, large, unseen = (predictor.predict(a_batch(at, group=group)) / MIB for group in ("small", "large", "other"))
    assert small == pytest.approx(164, rel=0.02)
    assert large == pytest.approx(196, rel=0.02)
    assert small < unseen < large


def test_a_peak_of_an_earlier_batch_is_only_an_upper_bound() -> None:
    predictor = MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE)
    predictor.observe(a_batch(10), 400 * MIB, at_most=True)
    assert predictor.predict(a_batch(10)) == pytest.approx(110 * MIB), "it would have been there before"
    for _ in range(10):
        predictor.observe(a_batch(100), 150 * MIB, at_most=True)
    assert predictor.predict(a_batch(100)) < 175 * MIB
    assert predictor.error() is None, "a bound is no measurement"


def test_the_error_compares_the_measurement_with_the_earlier_prediction() -> None:
    predictor = MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE)
    predictor.observe(a_batch(100), 250 * MIB)
    assert predictor.error() == pytest.approx(0.2)


def test_a_prediction_without_a_calibration_is_a_line_through_the_planned_peak() -> None:
    predictor = straight_line(100 * MIB, 64, 228 * MIB, 10.0)
    assert predictor.predict(Composition(64, 640)) == pytest.approx(228 * MIB)
    assert predictor.predict(Composition(32, 320)) == pytest.approx(164 * MIB)


def test_base_memory_growth_during_training_updates_all_groups() -> None:
    """What a process keeps for every shape of a batch adds up; a group whose turn comes rarely must not be left behind."""
    predictor = MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE)
    generator = random.Random(5)
    for _ in range(12):
        size = generator.randrange(20, 100)
        predictor.observe(a_batch(size, group="rare"), round((100 + 0.9 * size) * MIB))
    for number in range(60):
        size = generator.randrange(20, 100)
        predictor.observe(a_batch(size, group="often"), round((100 + number / 2 + size) * MIB))
    assert predictor.predict(a_batch(60, group="often")) / MIB == pytest.approx(100 + 30 + 60, rel=0.02)
    assert predictor.predict(a_batch(60, group="rare")) / MIB == pytest.approx(100 + 30 + 0.9 * 60, rel=0.04)


def test_a_group_is_settled_by_accurate_predictions_not_by_many_measurements() -> None:
    unsteady, steady = (MemoryPredictor(a_model(100 * MIB, MIB), SAMPLE) for _ in range(2))
    for number in range(40):
        unsteady.observe(a_batch(50), round(150 * MIB * (0.85, 1.15)[number % 2]))
        steady.observe(a_batch(50), 150 * MIB)
    assert unsteady.stable()
    assert not unsteady.settled()
    assert steady.settled()
