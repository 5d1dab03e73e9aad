"""Columns of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcal.train.report.steps import Steps


def steps_of(*rows: Mapping[str, object]) -> Steps:
    steps = Steps()
    steps.extend(rows)
    return steps


def test_a_column_with_missing_values_is_as_long_as_the_run() -> None:
    steps = steps_of({"loss": 1.0}, {"loss": 2.0, "late": 7})
    steps.extend([{"loss": None, "text": "none"}, {"late": True}])
    assert len(steps) == 4
    assert list(steps.column("loss"))[:2] == [1.0, 2.0]
    assert [math.isnan(value) for value in steps.column("loss")] == [False, False, True, True]
    assert list(steps.column("late"))[1::2] == [7.0, 1.0]
    assert steps.column("text") == ()
    assert steps.column("absent") == ()


def test_an_integer_too_large_for_a_float_is_nan() -> None:
    assert math.isnan(steps_of({"loss": 10**400}).column("loss")[0])


def test_task_names_come_from_the_column_names() -> None:
    steps = steps_of({"loss": 1.0, "loss_b": 1.0, "loss_a": 1.0, "weight_a": 1.0})
    assert steps.named("loss_") == ("a", "b")
    assert steps.curves() == ("loss", "loss_a", "loss_b", "weight_a")


def test_nan_is_distinguished_from_a_missing_value() -> None:
    rows: list[dict[str, object]] = [
        {"global_step": 1, "loss": 1.0},
        {"global_step": 2, "loss": None, "not_finite": "loss=nan grad_norm=inf", "grad_norm": None},
        {"global_step": 3},
    ]
    steps = steps_of(*rows)
    assert steps.not_finite("loss") == (2,)
    assert steps.not_finite("grad_norm") == (2,)
    assert steps.not_finite("norm") == ()
    assert steps.column("grad_norm")[1] == math.inf
    steps.cut(1)
    assert (len(steps), steps.not_finite("loss"), list(steps.column("loss"))) == (1, (), [1.0])


def test_a_run_without_steps_has_no_curves() -> None:
    assert Steps().buckets("loss", 10) == ()


def test_a_curve_omits_nan_values() -> None:
    steps = steps_of(*({"global_step": place, "loss": math.nan if place % 2 else float(place)} for place in range(8)))
    (first, *_) = steps.buckets("loss", 2)
    assert (first.low, first.mean, first.high) == (0.0, 1.0, 2.0)
    assert steps_of({"loss": math.nan}).buckets("loss", 5) == ()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 50))
def test_a_thinned_curve_keeps_the_extremes_and_the_mean(values: list[float], most: int) -> None:
    steps = steps_of(*({"global_step": place + 1, "loss": value} for place, value in enumerate(values)))
    buckets = steps.buckets("loss", most)
    assert len(buckets) <= most
    assert min(one.low for one in buckets) == min(values)
    assert max(one.high for one in buckets) == max(values)
    assert all(one.low - 1e-6 <= one.mean <= one.high + 1e-6 for one in buckets)
    places = [one.step for one in buckets]
    assert places == sorted(places)
    assert 1 <= places[0] <= places[-1] <= len(values)
    width = math.ceil(len(values) / most)
    assert sum(
        one.mean * len(values[at : at + width]) for one, at in zip(buckets, range(0, len(values), width), strict=True)
    ) == (pytest.approx(sum(values), abs=1e-3))


@pytest.mark.parametrize("steps", [(1.0, math.inf), (math.nan, 2.0), (2.0, 1.0), (-1.0, 2.0)])
def test_steps_without_valid_step_numbers_are_numbered_by_position(steps: tuple[float, float]) -> None:
    assert list(steps_of(*({"global_step": step} for step in steps)).places) == [1, 2]
