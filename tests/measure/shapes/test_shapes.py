"""Shapes that are asked about: traced in real children, and never given memory."""

from __future__ import annotations

import os
import time

import pytest

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.errors import UsageError
from batchcal.core.units import MIB
from batchcal.measure.deadline import Deadline
from batchcal.measure.shapes.shapes import batches_by, estimate_shapes
from batchcal.workload.spec.reference import TaskReference
from tests.support.children import REPOSITORY

pytestmark = pytest.mark.child

PATCHTST = TaskReference(spec="batchcal.workload.examples.patchtst:task", directory=str(REPOSITORY))
ENVIRON = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_a_large_model_is_traced_without_its_memory() -> None:
    own, large = estimate_shapes(PATCHTST, [{"d_model": 1024, "n_layers": 12}], environ=ENVIRON)
    assert own.arguments == {}
    assert own.points
    assert large.why == ""
    assert large.parameters > 90_000_000
    # AdamW keeps two numbers a parameter.
    assert large.static_bytes == pytest.approx(3 * 4 * large.parameters, rel=0.01)
    assert large.gradient_bytes == pytest.approx(4 * large.parameters, rel=0.01)
    assert large.points[-1].bytes > 10 * large.points[0].bytes


def test_an_unknown_task_argument_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="d_modl"):
        estimate_shapes(PATCHTST, [{"d_modl": 8}], environ=ENVIRON)


@pytest.mark.smoke("job:batchcal.measure.shapes.job:trace")
def test_a_shape_that_cannot_be_built_reports_the_error_and_keeps_other_shapes() -> None:
    narrow = TaskReference(spec="tests.measure.shapes.tasks:narrow", directory=str(REPOSITORY))
    own, odd, good = estimate_shapes(narrow, [{"width": 1000}, {"width": 64}], environ=ENVIRON)
    assert own.points
    assert good.points
    assert odd.points == ()
    assert odd.why.endswith("raised ValueError: too wide")


def test_a_shape_without_remaining_time_reports_the_time_limit() -> None:
    past = Deadline(1.0, start_s=time.monotonic() - 10)
    own, large = estimate_shapes(PATCHTST, [{"n_layers": 12}], environ=ENVIRON, deadline=past)
    assert (own.why, large.points) == ("the time limit of 1 s (--time-limit) ended before this shape was traced", ())


def test_a_trace_stays_within_the_memory_limit() -> None:
    (own,) = estimate_shapes(PATCHTST, [], environ=ENVIRON, memory_limit_bytes=100 * MIB)
    assert own.why.startswith("out-of-memory: watchdog")


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        (None, (2, 8, 32, 128)),
        (SizeRule(multiple_of=3, least=3), (3, 6, 30, 126)),
        (SizeRule(least=48, most=48), (48,)),
    ],
)
def test_a_trace_uses_sizes_that_the_task_accepts(rule: SizeRule | None, sizes: tuple[int, ...]) -> None:
    assert batches_by(rule) == sizes
