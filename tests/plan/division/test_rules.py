"""When a plan may divide an effective batch, and into what."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration
from batchcal.plan.division.group_limits import GroupLimits
from batchcal.plan.division.last_group import last_group_of
from batchcal.plan.division.rules import DivisionRefused, division_of
from batchcal.plan.expectations import peak_bytes
from batchcal.plan.formats import exported
from batchcal.plan.make import is_rehearsed, make_plan, plan_to_show
from tests.support.calibrations import TRAIN_CAPACITY, a_calibration, a_finding, options

COUPLED = PromiseCheck(
    promise="mean-over-weight", result="violated", mismatch=0.76, cause="in-batch negatives", fix="a loss that is a mean"
)
NORMALISED = PromiseCheck(
    promise="batch-statistics",
    result="violated",
    cause="12 BatchNorm2d layers",
    single_sample_error="ValueError: Expected more than 1 value per channel when training",
)
EXACT = PromiseCheck(promise="mean-over-weight", result="ok", mismatch=1e-7)


def measured(*promises: PromiseCheck, train_samples: int = 60_000, **asked: object) -> Calibration:
    calibration = a_calibration(promises=promises, options=options(**asked))
    assert calibration.facts is not None
    return calibration.model_copy(update={"facts": calibration.facts.model_copy(update={"train_samples": train_samples})})


def test_a_batch_that_must_not_be_divided_stays_one_micro_batch() -> None:
    plan = make_plan(measured(COUPLED), effective_batch=TRAIN_CAPACITY)
    assert plan.micro_batches == (TRAIN_CAPACITY,)
    assert plan.inexact == ()
    assert "differ by 76 %" in plan.undivided


def test_a_batch_that_must_not_be_divided_and_does_not_fit_is_rejected() -> None:
    with pytest.raises(DivisionRefused) as refused:
        make_plan(measured(COUPLED), effective_batch=TRAIN_CAPACITY + 1)
    assert refused.value.exit_code == 2
    assert "differ by 76 %: in-batch negatives" in refused.value.known
    assert f"--effective-batch {TRAIN_CAPACITY}" in refused.value.try_
    assert "a loss that is a mean" in refused.value.try_
    assert "--accept-inexact" in refused.value.try_


@pytest.mark.parametrize("given", [{"accept_inexact": True}, {}])
def test_an_accepted_mismatch_is_recorded_in_the_plan(given: dict[str, bool]) -> None:
    calibration = measured(COUPLED, accept_inexact=not given)
    plan = make_plan(calibration, effective_batch=4 * TRAIN_CAPACITY, accept_inexact=given.get("accept_inexact"))
    assert plan.accumulation_steps > 1
    assert plan.inexact == ("loss",)
    assert plan.undivided == ""
    assert "differs by up to 76 %, which the user accepts" in plan.why["inexact"]
    assert exported(plan, {})["BATCHCAL_PLAN_INEXACT"] == "loss"


def test_a_plan_is_still_shown_if_dividing_the_effective_batch_is_rejected() -> None:
    plan, refused = plan_to_show(measured(COUPLED).model_copy(update={"effective_batch": 4 * TRAIN_CAPACITY}))
    assert plan.micro_batches == (TRAIN_CAPACITY,)
    assert "does not fit undivided" in refused


def test_batchnorm_batches_are_divided_to_at_least_16_samples_and_marked_inexact() -> None:
    plan = make_plan(measured(EXACT, NORMALISED), effective_batch=4 * TRAIN_CAPACITY)
    assert min(plan.micro_batches) >= 16
    assert plan.inexact == ("batch-statistics",)
    assert "12 BatchNorm2d layers" in plan.why["inexact"]


@pytest.mark.parametrize(
    ("effective", "least", "sizes"), [(1000, 400, (500, 500)), (1100, None, (367, 367, 366)), (8, None, (8,))]
)
def test_no_micro_batch_is_below_the_minimum(effective: int, least: int | None, sizes: tuple[int, ...]) -> None:
    calibration = measured(EXACT, NORMALISED, min_micro_batch=least)
    assert make_plan(calibration, effective_batch=effective, objective="memory").micro_batches == sizes


def test_an_impossible_minimum_micro_batch_is_rejected_with_a_valid_suggestion() -> None:
    calibration = measured(EXACT, NORMALISED)
    with pytest.raises(DivisionRefused, match="below the minimum of 300") as refused:
        make_plan(calibration, effective_batch=TRAIN_CAPACITY + 2, min_micro_batch=300)
    assert f"--min-micro-batch {TRAIN_CAPACITY // 2 + 1}" in refused.value.try_
    plan = make_plan(calibration, effective_batch=TRAIN_CAPACITY + 2, min_micro_batch=TRAIN_CAPACITY // 2 + 1)
    assert plan.accumulation_steps == 2


def test_an_unchecked_loss_is_divided_and_the_plan_reports_it() -> None:
    unchecked = PromiseCheck(promise="mean-over-weight", result="not-checked", cause="the task refuses a batch of 2")
    plan = make_plan(measured(unchecked), effective_batch=4 * TRAIN_CAPACITY)
    assert (plan.inexact, plan.unchecked) == ((), True)
    assert not make_plan(measured(unchecked), effective_batch=TRAIN_CAPACITY).unchecked, "undivided"
    assert "it is unknown" in plan.why["inexact"]
    assert "refuses a batch of 2" in plan.why["inexact"]


@pytest.mark.parametrize(
    ("samples", "effective", "promises", "last"),
    [
        (600, 200, (EXACT,), ()),
        (1000, 300, (EXACT,), (100,)),
        (10_000, 4096, (EXACT,), (452, 452, 452, 452)),
        (129, 64, (EXACT, NORMALISED), (1,)),
        (1000, 400, (COUPLED,), (200,)),
    ],
)
def test_the_last_group_follows_the_same_rules_as_all_groups(
    samples: int, effective: int, promises: tuple[PromiseCheck, ...], last: tuple[int, ...]
) -> None:
    plan = make_plan(measured(*promises, train_samples=samples), effective_batch=effective, objective="memory")
    assert plan.last_group == last


def test_a_newly_accepted_mismatch_requires_another_rehearsal() -> None:
    given = measured(COUPLED, accept_inexact=True)
    assert is_rehearsed(given, options(accept_inexact=True))
    assert is_rehearsed(given, options())
    assert not is_rehearsed(measured(COUPLED), options(accept_inexact=True))


CLOSURE = PromiseCheck(
    promise="step-without-loss", result="violated", cause="LBFGS computes the loss again", fix="an optimizer such as AdamW"
)


def test_an_optimizer_with_a_closure_always_gets_one_micro_batch() -> None:
    calibration = measured(CLOSURE)
    assert make_plan(calibration, effective_batch=TRAIN_CAPACITY).micro_batches == (TRAIN_CAPACITY,)
    with pytest.raises(DivisionRefused, match="the optimizer needs one micro-batch") as refused:
        make_plan(calibration, effective_batch=TRAIN_CAPACITY + 1, accept_inexact=True)
    assert "LBFGS" in refused.value.known
    assert f"--effective-batch {TRAIN_CAPACITY}" in refused.value.try_
    assert "--accept-inexact" not in refused.value.try_


def test_the_plan_warns_about_a_last_group_of_one_sample_with_batchnorm() -> None:
    plan = make_plan(measured(EXACT, NORMALISED, train_samples=129), effective_batch=64)
    assert plan.last_group == (1,)
    assert "Expected more than 1 value" in plan.last_group_error
    assert any("--drop-last" in notice for notice in plan.notices)
    assert make_plan(measured(EXACT, NORMALISED, train_samples=130), effective_batch=64).last_group_error == ""


def test_a_fixed_size_task_that_must_not_be_divided_is_one_micro_batch() -> None:
    calibration = measured(COUPLED).model_copy(update={"size_rule": SizeRule(least=24, most=24, multiple_of=24)})
    assert make_plan(calibration, effective_batch=24).micro_batches == (24,)
    with pytest.raises(DivisionRefused) as refused:
        make_plan(calibration, effective_batch=48)
    assert "--effective-batch 24" in refused.value.try_


def with_findings(calibration: Calibration, capacity: int) -> Calibration:
    finding = a_finding()
    small = finding.model_copy(update={"train": finding.train.model_copy(update={"batch": capacity})})
    return calibration.model_copy(update={"findings": (small,)})


def test_several_ranks_are_rejected_for_a_batch_that_must_not_be_divided() -> None:
    with pytest.raises(DivisionRefused, match="an effective batch of 64 would be divided over 4 ranks") as refused:
        make_plan(measured(COUPLED), effective_batch=64, world_size=4)
    assert "differ by 76 %: in-batch negatives" in refused.value.known
    assert "--world-size 1 --effective-batch 64" in refused.value.try_
    plan = make_plan(measured(COUPLED), effective_batch=64, world_size=4, accept_inexact=True)
    assert plan.accumulation_steps == 1
    assert plan.inexact == ("loss",)
    assert "divided over 4 ranks" in plan.why["inexact"]
    assert "differs by up to 76 %, which the user accepts" in plan.why["inexact"]


def test_the_minimum_micro_batch_of_batchnorm_applies_to_each_rank() -> None:
    calibration = measured(EXACT, NORMALISED)
    plan = make_plan(calibration, effective_batch=64, world_size=4)
    assert plan.micro_batches == (16,)
    assert plan.inexact == ("batch-statistics",)
    with pytest.raises(DivisionRefused, match="an effective batch of 32 would be divided into micro-batches of 8") as refused:
        make_plan(calibration, effective_batch=32, world_size=4)
    assert "--effective-batch 64, or --min-micro-batch 8" in refused.value.try_
    assert make_plan(calibration, effective_batch=32, world_size=4, min_micro_batch=8).micro_batches == (8,)


def test_errors_for_several_ranks_show_the_total_effective_batch() -> None:
    with pytest.raises(DivisionRefused, match=f"an effective batch of {2 * TRAIN_CAPACITY + 2} does not fit") as refused:
        make_plan(measured(CLOSURE), effective_batch=2 * TRAIN_CAPACITY + 2, world_size=2)
    assert f"--effective-batch {2 * TRAIN_CAPACITY}" in refused.value.try_


def test_an_undivided_batch_needs_no_memory_for_accumulated_gradients() -> None:
    calibration = with_findings(measured(EXACT, NORMALISED), 64)
    finding, facts = calibration.findings[0], calibration.facts
    assert facts is not None
    room = 4 * 1024**2
    budget = calibration.budgets[0].model_copy(update={"budget_bytes": peak_bytes(calibration, finding, 12) + room})
    calibration = calibration.model_copy(
        update={"budgets": (budget,), "facts": facts.model_copy(update={"parameter_bytes": room})}
    )
    with pytest.raises(DivisionRefused, match="below the minimum of 16") as refused:
        make_plan(calibration, effective_batch=100, objective="memory")
    assert "the largest undivided batch is 64" in refused.value.known
    assert "--effective-batch 64" in refused.value.try_
    assert make_plan(calibration, effective_batch=64, objective="memory").micro_batches == (64,)


def test_a_plan_reduced_for_gradients_has_notices_about_its_final_sizes() -> None:
    calibration = with_findings(measured(EXACT, multiple_of=8), 64)
    finding, facts = calibration.findings[0], calibration.facts
    assert facts is not None
    room = 4 * 1024**2
    budget = calibration.budgets[0].model_copy(update={"budget_bytes": peak_bytes(calibration, finding, 12) + room})
    calibration = calibration.model_copy(
        update={"budgets": (budget,), "facts": facts.model_copy(update={"parameter_bytes": room})}
    )
    plan = make_plan(calibration, effective_batch=128, objective="memory")
    assert any(size % 8 for size in plan.micro_batches) == any("not multiples of 8" in notice for notice in plan.notices)
    assert plan.micro_batch <= 12


@pytest.mark.parametrize(("capacity", "warned"), [(16, True), (64, False)])
def test_the_plan_warns_about_a_last_group_below_the_minimum_micro_batch(capacity: int, warned: bool) -> None:
    calibration = with_findings(measured(EXACT, NORMALISED, train_samples=84), capacity)
    plan = make_plan(calibration, effective_batch=64, objective="memory")
    assert plan.last_group == ((10, 10) if warned else (20,))
    notices = [notice for notice in plan.notices if "--drop-last" in notice]
    assert bool(notices) == warned
    if warned:
        assert "20 samples in micro-batches of 10 samples, below the minimum of 16" in notices[0]


def test_a_last_group_below_the_minimum_is_not_divided_if_it_fits() -> None:
    calibration = with_findings(measured(EXACT, NORMALISED, train_samples=74), 64)
    finding = calibration.findings[0]
    division, limits = division_of(calibration, 64), GroupLimits(least=16, most=finding.train.batch)
    assert last_group_of(calibration, 64, 8, division, limits) == ((10,), "")
