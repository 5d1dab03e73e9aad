"""An error that limits the capacity is shown with its traceback."""

from __future__ import annotations

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration
from batchcal.cli.views.calibration.refusal import limiting_error
from batchcal.guard.outcome import UserCodeFailed
from tests.support.calibrations import a_calibration, measurement

TRACEBACK = 'Traceback (most recent call last):\n  File "task.py", line 7, in loss\nIndexError: no more than 100'


def limited(*, by: str = "model", rule: SizeRule | None = None) -> Calibration:
    """The capacity is limited `by` something, and two larger sizes failed."""
    calibration = a_calibration()
    finding = calibration.finding()
    assert finding is not None
    size = finding.train.batch
    failed = tuple(
        measurement(
            sequence=100 + more,
            batch=size + more,
            outcome=UserCodeFailed(phase="measure", error="IndexError: no more than 100", traceback=TRACEBACK),
        )
        for more in (50, 2)
    )
    update = {"train": finding.train.model_copy(update={"limited_by": by})}
    findings = tuple(one.model_copy(update=update) if one is finding else one for one in calibration.findings)
    changes = {"findings": findings, "measurements": (*calibration.measurements, *failed), "size_rule": rule}
    return calibration.model_copy(update=changes)


def test_the_error_of_the_smallest_failing_size_is_shown_with_its_traceback() -> None:
    calibration = limited(rule=SizeRule(most=100))
    finding = calibration.finding()
    assert finding is not None
    text = limiting_error(calibration)
    assert text == f"the task's code fails at batch {finding.train.batch + 2}: IndexError: no more than 100\n{TRACEBACK}"


def test_memory_limits_and_size_rules_are_not_task_errors() -> None:
    assert limiting_error(limited(by="memory")) == ""
    assert limiting_error(limited(rule=SizeRule(multiple_of=2, least=2))) == ""
    assert limiting_error(a_calibration()) == ""
