"""Converts the results of a device search to a calibration: its findings, the best device, and its status."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from batchcal.calibration.records.undone import Undone
from batchcal.calibration.schema import TIME_TO_LIVE, Budget, Calibration, Finding, Fingerprint
from batchcal.core.errors import BatchcalError
from batchcal.core.version import __version__
from batchcal.detect.environment import Environment
from batchcal.machine.allocator import AUTO
from batchcal.measure.capacity.device_search import DeviceSearch
from batchcal.measure.observations import summed_up, with_bounded_evidence
from batchcal.workload.spec.identity import TaskIdentity


def recorded(
    device_search: DeviceSearch,
    budgets: Mapping[str, Budget],
    *,
    environment: Environment,
    task: TaskIdentity,
    fingerprint: Fingerprint,
    at: datetime,
    stopped: BatchcalError | None,
) -> Calibration:
    """Return the calibration with the results of `device_search`.

    Args:
        budgets: budget by device, the device that was requested first comes first.
        stopped: error that ended the search early. None: it ended by itself.
    """
    # If nothing was verified under the policy that won, the answer of another policy is still an answer.
    by_policy = {device: device_search.policies.policy(device) for device in budgets}
    candidates = [finding for finding in device_search.findings if finding.allocator == by_policy[finding.device]]
    candidates = candidates or list(device_search.findings if device_search.options.allocator == AUTO else ())
    chosen = max(candidates, key=lambda finding: _rate(device_search, finding), default=None)
    device = chosen.device if chosen is not None else next(iter(budgets))
    if chosen is not None and len(candidates) > 1:
        rates = ", ".join(f"{finding.device} {_rate(device_search, finding):.0f} samples/s" for finding in candidates)
        device_search.attempts.note(f"{device} is the fastest device: {rates}")
    undone = [*device_search.undone, *([Undone(part="stopped", text=stopped.what)] if stopped is not None else [])]
    examination = device_search.examinations.by_device.get(device)
    measured_under = {finding.allocator for finding in device_search.findings}
    # A library under which no finding was measured may appear or disappear.
    libraries = {name: digest for name, digest in fingerprint.allocators.items() if name in measured_under}
    options = device_search.options
    return Calibration(
        batchcal=__version__,
        created_at=at,
        expires_at=at + TIME_TO_LIVE,
        status="partial" if chosen is None else "unsettled" if undone else "complete",
        environment=environment,
        task=task,
        facts=examination.facts if examination is not None else None,
        command=examination.command if examination is not None else None,
        options=options,
        fingerprint=fingerprint.model_copy(update={"allocators": libraries}),
        budgets=tuple(budgets.values()),
        measurements=with_bounded_evidence(device_search.attempts.measurements),
        setups=summed_up(device_search.attempts.measurements, options.workers or 0),
        findings=tuple(device_search.findings),
        chosen_device=device,
        allocator=(by_policy[device] if chosen is None else chosen.allocator) if options.allocator == AUTO else None,
        speeds=tuple(device_search.policies.speeds),
        promises=(*(() if examination is None else examination.promises), *device_search.examinations.promises),
        loader_workers=device_search.examinations.loader_workers,
        effective_batch=options.effective_batch,
        undone=tuple(undone),
        notes=tuple(device_search.attempts.notes),
        size_rule=device_search.sizes.rule,
        time_slices=device_search.slices.durations(),
        unanswered=("throughput", *(() if chosen is not None and chosen.train.answers_memory else ("memory",))),
    )


def with_results_of(existing: Calibration, calibration: Calibration) -> Calibration:
    """Return `calibration` with the results of `existing` that it has not measured itself: its objective does not need them."""
    finals = calibration.finals or existing.finals
    rehearsed = [rehearsal.settings for rehearsal in calibration.rehearsals]
    # The gain is that of a plan, which another search for the same objective may have changed.
    attribution = None if calibration.options.objective == existing.options.objective else existing.attribution
    return calibration.model_copy(
        update={
            "speeds": calibration.speeds or existing.speeds,
            "sizes": calibration.sizes or existing.sizes,
            "finals": finals,
            "rehearsals": (*(old for old in existing.rehearsals if old.settings not in rehearsed), *calibration.rehearsals),
            "loader_workers": calibration.loader_workers or existing.loader_workers,
            "attribution": calibration.attribution or attribution,
            "pipeline": calibration.pipeline or existing.pipeline,
            "shapes": calibration.shapes or existing.shapes,
            "unanswered": tuple(
                objective for objective in calibration.unanswered or () if objective != "throughput" or not finals
            ),
        }
    )


def _rate(device_search: DeviceSearch, finding: Finding) -> float:
    """Samples/s of the fastest micro-batch that was run under the finding's policy on its device."""
    place = (finding.device, finding.allocator)
    times = [
        time for speeds in device_search.policies.speeds if (speeds.device, speeds.allocator) == place for time in speeds.times
    ]
    return max([finding.train.samples_per_s, *(time.samples_per_s(time.micro_batch) for time in times)])
