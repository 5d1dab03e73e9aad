"""Plans of tasks that do not take every batch size."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration
from batchcal.core.errors import UsageError
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.division.size_rule import alike, divided, last_group_by
from batchcal.plan.make import make_plan, plan_to_show
from tests.support.calibrations import a_calibration

EVEN = SizeRule(multiple_of=2, least=2)
FIXED = SizeRule(least=32, most=32)
STATEFUL = SizeRule(one_size=True)


def calibration_by(rule: SizeRule) -> Calibration:
    calibration = a_calibration()
    return calibration.model_copy(update={"size_rule": rule})


@pytest.mark.parametrize("rule", [EVEN, STATEFUL], ids=["even", "stateful"])
@pytest.mark.parametrize("effective_batch", [100, 256, 1000])
def test_every_batch_size_of_a_plan_is_accepted_by_the_task(rule: SizeRule, effective_batch: int) -> None:
    plan = make_plan(calibration_by(rule), effective_batch=effective_batch)
    assert sum(plan.micro_batches) == effective_batch
    assert all(map(rule.admits, plan.micro_batches))
    assert rule.admits(plan.eval_batch)
    assert plan.size_rule == rule
    if rule.one_size:
        assert set(plan.micro_batches) == {plan.eval_batch}


def test_an_invalid_effective_batch_is_rejected_with_the_nearest_valid_size() -> None:
    with pytest.raises(UsageError) as raised:
        make_plan(calibration_by(EVEN), effective_batch=101)
    assert raised.value.exit_code == 2
    assert "accepts only even batches" in raised.value.known
    assert raised.value.try_ == "--effective-batch 102"


def test_an_effective_batch_without_a_suitable_divisor_suggests_a_faster_size() -> None:
    sizes, notices = divided(STATEFUL, 101, 64, most=64)
    assert sizes == (1,) * 101
    assert "--effective-batch" in notices[0]
    assert divided(STATEFUL, 100, 64, most=64) == ((50, 50), ())


def test_the_last_group_follows_the_size_rule_or_has_an_error_text() -> None:
    assert last_group_by(EVEN, 54, 32) == ((28, 26), "")
    assert last_group_by(EVEN, 55, 32) == ((55,), "the task accepts only even batches")
    assert last_group_by(STATEFUL, 50, 50) == ((50,), "")
    assert last_group_by(STATEFUL, 40, 50) == ((40,), "the task accepts only one batch size per process")
    assert last_group_by(FIXED, 64, 32) == ((32, 32), "")
    assert last_group_by(EVEN, 54, 32, undivided=True) == ((54,), "")
    assert last_group_by(EVEN, 20, 16, least=16, most=32) == ((20,), "")
    assert last_group_by(EVEN, 20, 16, least=16) == ((10, 10), "")


def test_a_plan_suggests_drop_last_if_the_task_rejects_the_last_group() -> None:
    calibration = calibration_by(EVEN)
    assert calibration.facts is not None
    facts = calibration.facts.model_copy(update={"train_samples": 1001})
    plan = make_plan(calibration.model_copy(update={"facts": facts}), effective_batch=100)
    assert plan.last_group == (1,)
    assert "only even batches" in plan.last_group_error
    assert any("--drop-last" in notice for notice in plan.notices)


def test_a_process_with_a_one_size_rule_accepts_only_that_size() -> None:
    assert alike(STATEFUL, 50).fixed == 50
    assert alike(EVEN, 50) == EVEN


EIGHTS = SizeRule(multiple_of=8, least=8)


def test_a_batch_stays_undivided_if_every_division_is_below_the_minimum() -> None:
    assert divided(EIGHTS, 24, 16, most=64, least=16) == ((24,), ())
    assert divided(EIGHTS, 24, 8, most=8, least=16, largest_undivided=64) == ((24,), ())


def test_a_minimum_that_allows_no_division_is_rejected() -> None:
    with pytest.raises(DivisionRefused) as refused:
        divided(EIGHTS, 24, 16, most=16, least=16)
    assert "--effective-batch 32" in refused.value.try_
    assert "--min-micro-batch 8" in refused.value.try_
    assert "the minimum is 16" in refused.value.known


def test_a_suggested_effective_batch_is_the_total_of_all_ranks() -> None:
    with pytest.raises(DivisionRefused, match="an effective batch of 100") as refused:
        make_plan(calibration_by(EIGHTS), effective_batch=100, world_size=2)
    assert refused.value.try_ == "--effective-batch 96"
    assert make_plan(calibration_by(EIGHTS), effective_batch=96, world_size=2).micro_batches == (48,)


def test_a_plan_is_still_shown_if_the_task_rejects_the_effective_batch() -> None:
    rule = SizeRule(multiple_of=96, least=96)
    plan, refused = plan_to_show(calibration_by(rule).model_copy(update={"effective_batch": 100}))
    assert rule.admits(plan.micro_batch)
    assert "no micro-batches that the task accepts" in refused
