"""After a failed rehearsal no verb offers a micro-batch of that size or above."""

from __future__ import annotations

from typing import get_args

import pytest

from batchcal.calibration.schema import Calibration
from batchcal.core.errors import NoCalibration
from batchcal.guard.outcome import Outcome, OutOfMemory, Suspect, Swapping, UserCodeFailed
from batchcal.plan.make import make_plan
from batchcal.plan.rehearsals.reduced import reduced
from batchcal.plan.rehearsals.rehearsed import most_rehearsed
from batchcal.plan.what_if import what_if
from batchcal.values.settings import Objective
from tests.support.calibrations import LIMIT_BYTES, a_calibration, a_finding, fits
from tests.support.races import rehearsed

OUT: Outcome = OutOfMemory(source="fence")
TOO_BIG: dict[str, Outcome] = {
    "fence": OUT,
    "budget": OutOfMemory(source="budget", detail="too much"),
    "swapping": Swapping(swapped_bytes=1 << 30),
    "suspect": Suspect(detail="", near_limit=0.9),
}


def failed_at(effective_batch: int, outcome: Outcome = OUT) -> tuple[Calibration, int]:
    """The calibration after the plan for `effective_batch` failed, and the micro-batch that failed."""
    plan = make_plan(a_calibration(), effective_batch=effective_batch, objective="memory")
    return reduced(a_calibration(rehearsals=(rehearsed(plan, outcome),))), plan.micro_batch


@pytest.mark.parametrize("outcome", TOO_BIG.values(), ids=TOO_BIG)
@pytest.mark.parametrize("failing", [96, 512, 1000])
def test_no_plan_uses_a_micro_batch_that_failed_its_rehearsal(outcome: Outcome, failing: int) -> None:
    calibration, failed = failed_at(failing, outcome)
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.batch < failed
    assert finding.train.ruled_out == failed
    for objective in get_args(Objective):
        for effective_batch in (1, failed - 1, failed, failed + 1, 777, 4096):
            plan = make_plan(calibration, effective_batch=effective_batch, objective=objective)
            assert max(plan.micro_batches) < failed, (objective, effective_batch)
    assert make_plan(calibration, effective_batch=4 * failed, world_size=4).micro_batch < failed
    (here,) = what_if(calibration, [LIMIT_BYTES])
    assert here.micro_batch < failed


def test_a_failed_rehearsal_reduces_predictions_for_other_memory_limits() -> None:
    (before,) = what_if(a_calibration(), [2 * LIMIT_BYTES])
    calibration, _ = failed_at(512)
    (after,) = what_if(calibration, [2 * LIMIT_BYTES])
    assert 0 < after.micro_batch < before.micro_batch


def test_a_smaller_rehearsed_plan_becomes_the_capacity() -> None:
    first = make_plan(a_calibration(), effective_batch=1024, objective="memory")
    failed = rehearsed(first, OUT)
    second = make_plan(a_calibration(rehearsals=(failed,)), effective_batch=1024, objective="memory")
    calibration = reduced(a_calibration(rehearsals=(failed, rehearsed(second, fits(700, 1300.0, batch=1024)))))
    finding = calibration.finding()
    assert finding is not None
    assert (finding.train.batch, finding.train.measured_by) == (second.micro_batch, 0)
    plan = make_plan(calibration, effective_batch=1024, objective="memory")
    assert (plan.status, plan.micro_batches) == ("verified", second.micro_batches)


def test_a_failed_rehearsal_of_one_sample_leaves_no_capacity() -> None:
    plan = make_plan(a_calibration(), effective_batch=1)
    with_failure = a_calibration(rehearsals=(rehearsed(plan, OUT),))
    calibration = reduced(with_failure)
    assert calibration.finding() is None
    assert calibration.status == "partial"
    with pytest.raises(NoCalibration, match="not even one sample"):
        make_plan(with_failure, effective_batch=8)


def test_rehearsal_failures_unrelated_to_memory_do_not_reduce_the_capacity() -> None:
    plan = make_plan(a_calibration(), effective_batch=512)
    outcome = UserCodeFailed(phase="measure", error="ValueError: no")
    calibration = a_calibration(rehearsals=(rehearsed(plan, outcome),))
    assert reduced(calibration) == calibration
    assert most_rehearsed(calibration, a_finding()) is None
