"""Shapes that are asked about: traced in real children, and never given memory."""

from __future__ import annotations

import os

import pytest

from batchcal.core.errors import UsageError
from batchcal.measure.shapes.shapes import estimate_shapes
from batchcal.workload.reference import TaskReference
from tests.support.children import REPOSITORY

pytestmark = pytest.mark.child

PATCHTST = TaskReference(spec="batchcal.workload.examples.patchtst:task", directory=str(REPOSITORY))
ENVIRON = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_a_large_model_is_traced_without_memory_beside_the_task_itself() -> None:
    own, large = estimate_shapes(PATCHTST, [{"d_model": 1024, "n_layers": 12}], environ=ENVIRON)
    assert own.arguments == {}
    assert own.points
    assert large.why == ""
    assert large.parameters > 90_000_000
    # AdamW keeps two numbers a parameter.
    assert large.static_bytes == pytest.approx(3 * 4 * large.parameters, rel=0.01)
    assert large.gradient_bytes == pytest.approx(4 * large.parameters, rel=0.01)
    assert large.points[-1].bytes > 10 * large.points[0].bytes


def test_a_name_that_the_task_does_not_take_is_a_mistake_of_the_command() -> None:
    with pytest.raises(UsageError, match="d_modl"):
        estimate_shapes(PATCHTST, [{"d_modl": 8}], environ=ENVIRON)


def test_a_shape_that_cannot_be_built_says_why_and_the_others_are_there() -> None:
    narrow = TaskReference(spec="tests.measure.shapes.tasks:narrow", directory=str(REPOSITORY))
    own, odd, good = estimate_shapes(narrow, [{"width": 1000}, {"width": 64}], environ=ENVIRON)
    assert own.points
    assert good.points
    assert odd.points == ()
    assert odd.why.endswith("raised ValueError: too wide")
