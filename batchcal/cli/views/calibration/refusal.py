"""The error of the task's own code that limits a capacity."""

from __future__ import annotations

from batchcal.calibration.schema import Calibration
from batchcal.guard.outcome import UserCodeFailed


def limiting_error(calibration: Calibration) -> str:
    """Return the error of the task's code at the smallest size above the capacity that it refuses, with its traceback. Empty:
    memory or another limit ends the capacity, or the sizes follow a rule, which is not an error."""
    finding, rule = calibration.finding(), calibration.size_rule
    if finding is None or finding.train.limited_by != "model" or (rule is not None and rule.restricts):
        return ""
    failed = [
        (probe.batch, probe.outcome)
        for probe in calibration.measurements
        if isinstance(probe.outcome, UserCodeFailed) and probe.mode == "train" and probe.batch > finding.train.batch
    ]
    if not failed:
        return ""
    batch, outcome = min(failed, key=lambda pair: pair[0])
    evidence = outcome.evidence
    return f"the task's code fails at batch {batch}: {outcome.error}" + (f"\n{evidence}" if evidence else "")
