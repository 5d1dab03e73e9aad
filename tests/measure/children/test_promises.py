"""The promises of real tasks, checked in children of their own."""

from __future__ import annotations

import math

import pytest

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.core.units import MIB
from batchcal.measure.children.examiner import promises_limit_s
from tests.support.children import probing

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]


def promises(task: str) -> dict[str, PromiseCheck]:
    with probing(task) as probe:
        examination = probe.examine("cpu", "default", 800 * MIB, 2.0)
        again = probe.examine("cpu", "default", 800 * MIB, 2.0)
    assert again.promises == examination.promises, "they are checked once, whatever the policy is"
    return {check.promise: check for check in examination.promises}


def test_an_ordinary_task_passes_all_promise_checks() -> None:
    checks = promises("batchcal.workload.examples.handwriting:task")
    assert {check.result for check in checks.values()} == {"ok"}
    assert (checks["mean-over-weight"].mismatch or 0.0) < 1e-4


@pytest.mark.smoke("job:batchcal.measure.inside.promise_job:check_promises")
def test_a_loss_that_couples_samples_violates_mean_over_weight() -> None:
    check = promises("tests.measure.tasks:coupled")["mean-over-weight"]
    assert check.result == "violated"
    assert "the other samples" in check.cause


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hanging_in_its_check", "dying_in_its_check"])
def test_a_promise_whose_check_hangs_or_dies_is_not_checked(task: str) -> None:
    checks = promises(f"tests.measure.tasks:{task}")
    assert checks["mean-over-weight"].result == "not-checked"
    assert checks["mean-over-weight"].cause


def test_promise_checks_before_an_out_of_memory_error_are_kept() -> None:
    checks = promises("tests.measure.tasks:normalised_and_hungry")
    assert checks["batch-statistics"].result == "violated"
    assert checks["mean-over-weight"].result == "ok", "checked with two samples"


def test_the_time_limit_of_promise_checks_depends_on_the_remaining_time() -> None:
    """A command of 20 s on a busy machine has 12 s left when it begins."""
    assert promises_limit_s(12.0) == 4.0
    assert promises_limit_s(3.0) == 1.5
    assert promises_limit_s(60.0) == 6.0
    assert promises_limit_s(math.inf) == 10.0
