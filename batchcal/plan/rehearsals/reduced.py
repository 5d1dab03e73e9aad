"""Reduce capacities after failed rehearsals, so that a calibration offers no size that did not fit as a complete plan."""

from __future__ import annotations

from batchcal.calibration.records.rehearsal import Rehearsal
from batchcal.calibration.schema import Calibration, Capacity, Finding
from batchcal.guard.outcome import Fits
from batchcal.plan.expectations import fitting
from batchcal.plan.rehearsals.rehearsed import least_ruled_out, most_rehearsed


def reduced(calibration: Calibration) -> Calibration:
    """Return `calibration` with capacities that are not larger than its failed rehearsals allow.

    A reduced capacity is the largest smaller size that was run within the budget, by a probe or as a complete plan. If no such
    size was run, it is the size that the failed rehearsal allows. A finding without a remaining size is removed.
    """
    findings = tuple(remaining for finding in calibration.findings if (remaining := _reduced(calibration, finding)) is not None)
    if findings == calibration.findings:
        return calibration
    changed = calibration.model_copy(update={"findings": findings})
    return changed if changed.finding() is not None else changed.model_copy(update={"status": "partial"})


def _reduced(calibration: Calibration, finding: Finding) -> Finding | None:
    most = most_rehearsed(calibration, finding)
    if most is None or most >= finding.train.batch:
        return finding
    if most < 1:
        return None
    update: dict[str, object] = {
        "limited_by": "memory" if finding.device == "cpu" else "accelerator-memory",
        "ruled_out": least_ruled_out(calibration, finding),
        "undone": "",
    }
    probed = [pair for pair in fitting(calibration, finding) if pair[0].batch <= most]
    rehearsed = [pair for pair in _rehearsed(calibration, finding) if max(pair[0].settings.micro_batches) <= most]
    largest = max((max(pair[0].settings.micro_batches) for pair in rehearsed), default=0)
    if rehearsed and (not probed or largest > probed[-1][0].batch):
        fits = next(fits for rehearsal, fits in reversed(rehearsed) if max(rehearsal.settings.micro_batches) == largest)
        update |= {"batch": largest, "measured_by": 0}
        update |= {"peak_bytes": fits.peak.bytes_on(finding.device), "samples_per_s": fits.samples_per_s}
    elif probed:
        measured, fits = probed[-1]
        update |= {"batch": measured.batch, "measured_by": measured.sequence}
        update |= {"peak_bytes": fits.peak.bytes_on(finding.device), "samples_per_s": fits.samples_per_s}
    else:
        update |= {"batch": most, "measured_by": 0, "undone": f"no size up to {most} was run"}
    capacity: Capacity = finding.train.model_copy(update=update)
    return finding.model_copy(update={"train": capacity})


def _rehearsed(calibration: Calibration, finding: Finding) -> list[tuple[Rehearsal, Fits]]:
    place = (finding.device, finding.allocator)
    return [
        (rehearsal, rehearsal.outcome)
        for rehearsal in calibration.rehearsals
        if (rehearsal.settings.device, rehearsal.settings.allocator) == place and isinstance(rehearsal.outcome, Fits)
    ]
