from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcal.calibration.schema import LimitedBy
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.core.units import GIB, MIB
from batchcal.plan.what_if import FURTHEST, what_if
from tests.support.calibrations import BUDGET_BYTES, LIMIT_BYTES, TRAIN_CAPACITY, a_calibration, a_finding, options


def limited_by(reason: LimitedBy) -> tuple[object, ...]:
    finding = a_finding()
    return (finding.model_copy(update={"train": finding.train.model_copy(update={"limited_by": reason})}),)


def test_twice_the_memory_limit_allows_more_than_twice_the_batch() -> None:
    (prediction,) = what_if(a_calibration(), [2 * GIB])
    assert prediction.status == "predicted"
    assert 2 * TRAIN_CAPACITY < prediction.micro_batch <= 1437
    assert prediction.budget_bytes == pytest.approx(2 * GIB * 0.85 - 31 * MIB, abs=8)
    assert prediction.predicted_peak_bytes is not None
    assert prediction.predicted_peak_bytes <= prediction.budget_bytes
    assert prediction.relative_error == 0.06, "glibc's own spread is larger than the residual"


def test_memory_of_other_host_processes_is_not_counted_in_a_container() -> None:
    calibration = a_calibration()
    bare = tuple(
        one.model_copy(update={"learned_from": "/proc/meminfo MemTotal", "others_bytes": 9 * GIB}) for one in calibration.budgets
    )
    (prediction,) = what_if(calibration.model_copy(update={"budgets": bare}), [2 * GIB])
    assert prediction.micro_batch > TRAIN_CAPACITY


def test_a_heap_growth_of_two_halves_the_micro_batch() -> None:
    steady, growing = a_finding(), a_finding(heap_growth=2.0)
    (before,) = what_if(a_calibration(findings=(steady,)), [GIB * 3 // 2])
    (after,) = what_if(a_calibration(findings=(growing,)), [GIB * 3 // 2])
    assert after.micro_batch == pytest.approx(before.micro_batch / 2, rel=0.02)


def test_heap_growth_reduces_the_usable_budget() -> None:
    finding = a_finding(heap_growth=2.0)
    base = finding.train_memory.base_bytes
    assert finding.usable_bytes(BUDGET_BYTES) == pytest.approx((base + BUDGET_BYTES) / 2, abs=2)
    assert a_finding().usable_bytes(BUDGET_BYTES) == BUDGET_BYTES
    assert finding.usable_bytes(1000) == 1000, "less than the process holds without a batch"


def test_the_same_memory_limit_allows_the_measured_capacity() -> None:
    (prediction,) = what_if(a_calibration(), [LIMIT_BYTES])
    assert prediction.micro_batch >= TRAIN_CAPACITY
    assert abs(prediction.budget_bytes - BUDGET_BYTES) <= 8


def test_an_inaccurate_memory_model_does_not_reduce_the_measured_capacity() -> None:
    finding = a_finding()
    dear = finding.model_copy(update={"train_memory": finding.train_memory.model_copy(update={"ratio": 1.5})})
    (prediction,) = what_if(a_calibration(findings=(dear,)), [LIMIT_BYTES])
    assert prediction.micro_batch == TRAIN_CAPACITY


def test_a_memory_limit_below_the_base_memory_allows_no_batch_with_a_reason() -> None:
    small, none = what_if(a_calibration(), [256 * MIB, 20 * MIB])
    for prediction in (small, none):
        assert (prediction.micro_batch, prediction.accumulation_steps, prediction.predicted_peak_bytes) == (0, 0, None)
        assert "one sample needs 269 MiB" in prediction.why
    assert "0 B would be available" in none.why


@pytest.mark.parametrize("reason", ["dataset", "model", "max-batch"])
def test_more_memory_does_not_help_where_memory_was_not_the_limit(reason: LimitedBy) -> None:
    (prediction,) = what_if(a_calibration(findings=limited_by(reason)), [8 * GIB])
    assert prediction.micro_batch == TRAIN_CAPACITY
    assert prediction.limited_by == reason


def test_the_requested_effective_batch_is_split_for_each_memory_limit() -> None:
    small, large = what_if(a_calibration(), [GIB, 2 * GIB], effective_batch=1100)
    assert (small.accumulation_steps, large.accumulation_steps) == (3, 1)
    assert {small.effective_batch, large.effective_batch} == {1100}


def test_a_prediction_for_a_huge_effective_batch_needs_little_memory() -> None:
    (prediction,) = what_if(a_calibration(), [GIB], effective_batch=10**15)
    assert prediction.accumulation_steps == -(-(10**15) // prediction.micro_batch)


def test_predictions_respect_multiple_of_and_max_batch() -> None:
    (prediction,) = what_if(a_calibration(options=options(multiple_of=64, max_batch=1000)), [8 * GIB])
    assert prediction.micro_batch == 960


def test_a_dataset_without_a_length_does_not_bound_the_prediction() -> None:
    (prediction,) = what_if(a_calibration(facts=None), [1024 * GIB])
    assert TRAIN_CAPACITY < prediction.micro_batch <= FURTHEST


def test_the_evaluation_batch_is_predicted_only_if_it_was_measured() -> None:
    (prediction,) = what_if(a_calibration(findings=(a_finding(eval=None, eval_memory=None),)), [2 * GIB])
    assert prediction.eval_batch == 0
    (prediction,) = what_if(a_calibration(), [2 * GIB])
    assert prediction.eval_batch == 360, "the whole evaluation set"


def test_invalid_what_if_arguments_are_rejected() -> None:
    with pytest.raises(UsageError, match="not positive"):
        what_if(a_calibration(), [0])
    with pytest.raises(UsageError, match="below 1"):
        what_if(a_calibration(), [GIB], effective_batch=0)
    with pytest.raises(NoCalibration):
        what_if(a_calibration(), [GIB], allocator="jemalloc")
    with pytest.raises(NoCalibration, match="no budget"):
        what_if(a_calibration(budgets=()), [GIB])


@given(limits=st.lists(st.integers(min_value=64, max_value=65_536), min_size=2, max_size=2, unique=True))
def test_a_larger_memory_limit_never_allows_a_smaller_batch(limits: list[int]) -> None:
    smaller, larger = what_if(a_calibration(), [limit * MIB for limit in sorted(limits)])
    assert smaller.micro_batch <= larger.micro_batch
    assert smaller.eval_batch <= larger.eval_batch
