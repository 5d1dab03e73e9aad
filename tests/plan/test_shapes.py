"""What shapes that nobody ran would train with."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.records.shape import ShapeEstimate
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration
from batchcal.core.errors import NoCalibration
from batchcal.core.units import GIB, MIB
from batchcal.plan.shapes import predict_shapes
from tests.plan.division.test_rules import COUPLED
from tests.support.calibrations import TRAIN_CAPACITY, a_calibration


def shape(mib_a_sample: float, static_mib: int, **arguments: int) -> ShapeEstimate:
    return ShapeEstimate(
        arguments=dict(arguments),
        parameters=static_mib * MIB // 12,
        static_bytes=static_mib * MIB,
        gradient_bytes=static_mib * MIB // 3,
        points=tuple(ShapePoint(batch=size, bytes=size * mib_a_sample * MIB) for size in (8, 1024)),
    )


def asked(*shapes: ShapeEstimate) -> Calibration:
    return a_calibration(shapes=(shape(1.0, 6), *shapes))


def test_the_prediction_for_the_task_itself_is_close_to_the_measurement() -> None:
    (own,) = predict_shapes(asked())
    assert own.micro_batch == pytest.approx(TRAIN_CAPACITY, rel=0.05)
    assert own.status == "predicted"
    assert own.at_rest_bytes < 268 * MIB


def test_a_larger_shape_needs_smaller_micro_batches() -> None:
    own, large = predict_shapes(asked(shape(10.0, 300, d_model=512)), effective_batch=200)
    assert (own.micro_batch, own.accumulation_steps) == (200, 1)
    assert (large.arguments, large.micro_batch, large.accumulation_steps) == ({"d_model": 512}, 25, 8)
    assert large.predicted_peak_bytes is not None
    assert large.predicted_peak_bytes <= large.budget_bytes


def test_a_shape_that_does_not_fit_or_cannot_be_traced_has_a_reason() -> None:
    untraced = ShapeEstimate(arguments={"a": 1}, parameters=0, static_bytes=0, gradient_bytes=0, points=(), why="no head")
    _, huge, odd = predict_shapes(asked(shape(1.0, 2 * GIB // MIB, n_layers=256), untraced))
    assert (huge.micro_batch, huge.predicted_peak_bytes, huge.why) == (0, None, "the prediction is that not even one sample fits")
    assert (odd.micro_batch, odd.why) == (0, "no head")


def test_predicted_sizes_follow_the_size_rule_of_the_task() -> None:
    even = asked(shape(10.0, 300, d_model=512)).model_copy(update={"size_rule": SizeRule(multiple_of=2, least=2)})
    _, large = predict_shapes(even, effective_batch=200)
    assert (large.micro_batch, large.accumulation_steps) == (24, 9)
    _, large = predict_shapes(even, effective_batch=201)
    assert (large.micro_batch, large.accumulation_steps) == (0, 0)
    assert large.why == "no micro-batches that the task accepts add up to an effective batch of 201"


def test_a_shape_prediction_does_not_divide_a_batch_that_must_not_be_divided() -> None:
    whole = asked(shape(10.0, 300, d_model=512)).model_copy(update={"promises": (COUPLED,)})
    _, large = predict_shapes(whole, effective_batch=200)
    assert (large.micro_batch, large.accumulation_steps) == (0, 0)
    assert large.why == "an effective batch of 200 does not fit undivided, and dividing it would change the training"


def test_an_error_without_shapes_suggests_the_shape_option() -> None:
    with pytest.raises(NoCalibration) as caught:
        predict_shapes(a_calibration())
    assert "--shape NAME=VALUE" in caught.value.try_
