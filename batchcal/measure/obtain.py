"""The calibration that a command, a study or a script works with: the existing one if it is valid here and now, else a new one.

This is the only place that decides whether a calibration is used or measured again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.keys import find_or_make_trust, find_trust
from batchcal.calibration.locate import existing_of
from batchcal.calibration.place import OUTPUT, own_place, place_for
from batchcal.calibration.schema import Calibration, Options
from batchcal.calibration.stale import Stale
from batchcal.calibration.store import Loaded, Missing, check_settled, load_fresh, lock_path, make_folder, refusal
from batchcal.core.clock import Clock, SystemClock
from batchcal.core.lock import Lock
from batchcal.core.progress import Note, Progress, Silent
from batchcal.detect.environment import Environment
from batchcal.machine.allocator import AUTO, resolve
from batchcal.measure.calibrate import Calibrator
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.children.probe import Probe
from batchcal.measure.result import CalibrationResult, Need
from batchcal.plan.make import answers, is_rehearsed
from batchcal.values.calibration_events import CalibrationEvent
from batchcal.workload.identity import identity_of
from batchcal.workload.spec.reference import TaskReference

LOCK_WAIT_FACTOR: Final = 2.0
"""Wait at most this many time limits for another process that calibrates the same file, then measure without the lock."""
ProgressContext = AbstractContextManager[Progress[CalibrationEvent]]


def obtain(
    reference: TaskReference,
    options: Options,
    need: Need,
    *,
    environment: Environment,
    detect_fully: Callable[[], Environment] | None = None,
    output: Path | None = None,
    output_name: str = OUTPUT,
    own_file: Path | None = None,
    on_stale: Callable[[Stale], None] = lambda stale: None,
    probe: Probe | None = None,
    launchers: Launchers | None = None,
    neighbours: bool = False,
    progress_context: Callable[[], ProgressContext] | None = None,
    clock: Clock | None = None,
    environ: Mapping[str, str] | None = None,
) -> CalibrationResult:
    """Return a calibration of `reference` that meets `need`: the existing one, which takes milliseconds, or a new measurement.

    Progress events of a measurement, in order: `calibrate_started`, then for each device and policy `phase`, `probe_started`,
    `probe_ended`, `best` and `note`, then `calibrate_ended`.

    Args:
        detect_fully: returns the environment to measure in, if `environment` lacks the parts that a process must detect.
        output, output_name: the file to write and the option that named it. Default: BATCHCAL_CALIBRATION, else
            the file of the task in `.batchcal` of the project (`calibration.locate`).
        own_file: the file to write, in a folder of batchcal. A damaged file there is replaced.
        on_stale: called before a stale calibration is replaced.
        probe: another way to measure, for tests.
        launchers: launchers of the children, for callers that calibrate many times. They stay open.
        progress_context: opened around a measurement, for its events. Not opened if the existing calibration is used.
        neighbours: other processes run in the memory group, so its growth is not counted against the children.

    Raises:
        NoCalibration: no valid one exists, and none may be measured.
        UsageError, UserCodeError, NothingFits: see `DeviceSearch.run`. An interruption or a lack of time does not raise: see
            `CalibrationResult.stopped`.
    """
    # Refuse a policy that this system does not have before any measurement. `resolve` also gives each library one name.
    if options.allocator != AUTO:
        options = options.model_copy(update={"allocator": resolve(options.allocator).name})
    variables = dict(os.environ if environ is None else environ)
    identity = identity_of(reference)
    calibrator = Calibrator(
        reference=reference,
        options=options,
        need=need,
        environment=environment,
        identity=identity,
        fingerprint=fingerprint_of(environment, identity, options, environ=variables),
        path=own_file or output or existing_of(reference, variables),
        # Reading does not need an own key; neither does a dry run.
        trust=find_trust(variables, require_signature=need.require_signature),
        progress=Silent(),
        clock=clock or SystemClock(),
        probe=probe,
        launchers=launchers,
        neighbours=neighbours,
    )
    if need.dry_run:
        _detect(calibrator, detect_fully, variables)
        with _open(progress_context) as calibrator.progress:
            return calibrator.rehearse_dry()
    existing = _existing(calibrator)
    valid = isinstance(existing, CalibrationResult) and existing.calibration.is_usable
    if not need.force:
        if isinstance(existing, CalibrationResult) and _is_enough(existing, calibrator):
            return existing
        if not need.may_measure:
            if isinstance(existing, CalibrationResult) and need.require_settled:
                check_settled(existing.calibration)
            missing = existing if isinstance(existing, Stale) else Missing(path=calibrator.path)
            raise refusal(missing, calibrator.path, spec=reference.spec)
    # Before any other message: a result that cannot be saved is not measured.
    place = place_for(reference, variables, output, name=output_name) if own_file is None else own_place(own_file)
    if isinstance(existing, Stale) and not need.force:
        on_stale(existing)
    calibrator.path = place.path
    calibrator.trust = find_or_make_trust(variables, require_signature=need.require_signature)
    calibrator.keep_partial = not valid
    _detect(calibrator, detect_fully, variables)
    with _open(progress_context) as calibrator.progress:
        return _locked(calibrator, list(place.notices), existing if isinstance(existing, CalibrationResult) else None)


def _detect(calibrator: Calibrator, detect_fully: Callable[[], Environment] | None, environ: Mapping[str, str]) -> None:
    if detect_fully is not None:
        calibrator.environment = detect_fully()
        identity, options = calibrator.identity, calibrator.options
        calibrator.fingerprint = fingerprint_of(calibrator.environment, identity, options, environ=environ)


def _open(
    progress_context: Callable[[], ProgressContext] | None,
) -> ProgressContext:
    return contextlib.nullcontext(Silent()) if progress_context is None else progress_context()


def _existing(calibrator: Calibrator) -> CalibrationResult | Stale | None:
    """Return the valid calibration at the path, rehearsed or not, or the reason why it is not valid. None: there is none."""
    loaded = load_fresh(
        calibrator.path,
        calibrator.fingerprint,
        at=calibrator.clock.now(),
        trust=calibrator.trust,
        environment=calibrator.environment,
        task=calibrator.identity,
        options=calibrator.options,
    )
    if isinstance(loaded, Stale):
        return loaded
    if not isinstance(loaded, Loaded) or loaded.calibration.status == "partial":
        return None
    return CalibrationResult(calibration=loaded.calibration, path=calibrator.path, fresh=True, notices=loaded.notices)


def _is_enough(existing: CalibrationResult, calibrator: Calibrator) -> bool:
    calibration = existing.calibration
    if _is_to_continue(existing, calibrator):
        return False
    if calibrator.need.by_setting and calibration.options.objective == "throughput" and not _is_attributed(existing, calibrator):
        return False
    if _is_below_least(calibration, calibrator.options):
        return False
    if not calibrator.need.rehearsed:
        return calibration.is_usable and answers(calibration, calibrator.options.objective)
    return is_rehearsed(calibration, calibrator.options)


def _is_below_least(calibration: Calibration, options: Options) -> bool:
    """True if larger micro-batches were not searched, and the smallest one that the options allow is larger."""
    finding, least = calibration.finding(), options.min_micro_batch
    return finding is not None and least is not None and finding.train.limited_by == "speed" and finding.train.batch < least


def _is_to_continue(existing: CalibrationResult, calibrator: Calibrator) -> bool:
    """True if the search did not finish, and the caller requires that it finishes, or is a calibration that offers more time or
    repeats one that a signal stopped. A training uses what was verified."""
    calibration, need, options = existing.calibration, calibrator.need, calibrator.options
    before = calibration.options
    if calibration.status != "unsettled" or options.objective != before.objective:
        return False
    if options.effective_batch not in (None, calibration.effective_batch):
        return False  # another question, which a rehearsal answers
    has_more = options.time_limit_s > before.time_limit_s
    if before.max_probes is not None and (options.max_probes is None or options.max_probes > before.max_probes):
        has_more = True
    was_stopped = any(undone.part == "stopped" for undone in calibration.undone)
    is_offered = need.rehearsed and (has_more or was_stopped)
    return is_offered or need.require_settled


def _is_attributed(existing: CalibrationResult, calibrator: Calibrator) -> bool:
    """True if the gain of each setting was measured for the plan that is requested."""
    calibration = existing.calibration
    attribution, requested = calibration.attribution, calibrator.options.effective_batch or calibration.effective_batch
    if attribution is None or not attribution.is_by_knob:
        return False
    return requested is None or attribution.effective_batch == requested


def _locked(calibrator: Calibrator, notices: list[str], existing: CalibrationResult | None) -> CalibrationResult:
    """Measure under a lock: replicas on one volume calibrate once. Without a lock each one calibrates, and all files are valid.

    Args:
        existing: a valid calibration that is not enough, at any path.
    """
    start_s, force = calibrator.clock.monotonic(), calibrator.need.force
    usable = existing

    def enough() -> bool:
        nonlocal usable
        current = None if force else _existing(calibrator)
        usable = current if isinstance(current, CalibrationResult) else existing
        return isinstance(current, CalibrationResult) and _is_enough(current, calibrator)

    with contextlib.suppress(OSError):  # saving reports it, with the result on stdout
        make_folder(calibrator.path)
    with Lock(lock_path(calibrator.path), clock=calibrator.clock) as lock:
        acquired = lock.acquire(
            wait_s=calibrator.options.time_limit_s * LOCK_WAIT_FACTOR,
            done=enough,
            on_wait=lambda text: calibrator.progress.event(Note(text)),
        )
        if acquired.notice:
            notices.append(acquired.notice)
        if enough() and usable is not None:
            return replace(usable, notices=(*notices, *usable.notices))
        if usable is not None and usable.calibration.is_usable and not force:
            continued = _is_to_continue(usable, calibrator)
            if continued:
                effective_batch = calibrator.options.effective_batch or usable.calibration.effective_batch
                calibrator.options = calibrator.options.model_copy(update={"effective_batch": effective_batch})
            too_small = _is_below_least(usable.calibration, calibrator.options)
            if continued or too_small or not answers(usable.calibration, calibrator.options.objective):
                calibrator.existing = usable.calibration
                return calibrator.measure(start_s, notices, restart=False)
            return calibrator.verify(replace(usable, notices=(*notices, *usable.notices)))
        return calibrator.measure(start_s, notices, restart=force)
