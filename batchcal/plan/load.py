"""Load the calibration of this project and a plan from it, for the user's own script. Takes milliseconds, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.freshness import check, moved
from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import Located, find_calibration
from batchcal.calibration.schema import Calibration
from batchcal.calibration.stale import Stale
from batchcal.calibration.store import Loaded, find_project, load, refusal
from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import UsageError, UserCodeError
from batchcal.detect.detect import detect
from batchcal.detect.environment import Environment
from batchcal.machine.allocator import PolicyName, in_force
from batchcal.machine.meters import read_status
from batchcal.plan.effective_batch import require
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.values.settings import Settings
from batchcal.workload.identity import identity_of
from batchcal.workload.spec.config import project_source
from batchcal.workload.spec.identity import TaskIdentity
from batchcal.workload.spec.reference import TaskReference

OnStale = Literal["raise", "use"]
"""`use` accepts a calibration that is stale by time, machine or task, and the plan has a notice. A calibration with an invalid
seal is never accepted."""


def load_calibration(
    path: Path | str | None = None,
    *,
    on_stale: OnStale = "raise",
    environ: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> Calibration:
    """Return the project's calibration. Its seal is valid, and it was measured on this machine, for this task, within seven days.

    Args:
        path: default: BATCHCAL_CALIBRATION, else in the project around the working directory: that of its task, or the only one.

    Raises:
        NoCalibration: there is none, or it must not be used. The error has the reason.
        UsageError: BATCHCAL_CALIBRATION or BATCHCAL_KEY_FILE names an unusable file; the project has several calibrations and
            names no task; or its config cannot be read.
    """
    variables = os.environ if environ is None else environ
    return open_calibration(
        _located(path, variables),
        on_stale=on_stale,
        environment=detect(environ=variables),
        environ=variables,
        clock=clock or SystemClock(),
    )[0]


def load_plan(
    *,
    effective_batch: int | None = None,
    path: Path | str | None = None,
    on_stale: OnStale = "raise",
    device: str | None = None,
    world_size: int = 1,
    environ: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> Plan:
    """Return a plan for this process. It is made for the allocator of the process, because the process is not restarted. The
    other settings of `[plan]` apply as for `batchcal plan`.

    Args:
        effective_batch: samples per optimizer step. Default: BATCHCAL_EFFECTIVE_BATCH, `[plan] effective_batch` of the project's
            file, `Task.effective_batch`, in this order.
        path: the calibration, as for `load_calibration`.
        device: default: BATCHCAL_DEVICE, `[calibrate] device`, the one that the calibration chose, in this order.
        world_size: processes that share the effective batch.

    Raises:
        NoCalibration: there is no usable calibration, or nothing was verified under this process's allocator.
        UsageError: the effective batch is not valid or not set, or as for `load_calibration`.
    """
    variables = os.environ if environ is None else environ
    project = project_source(Path.cwd())
    settings = Settings(environ=variables, files=() if project is None else (project[0],))
    if effective_batch is None:
        effective_batch = settings.plan.effective_batch
    if device is None and settings.calibrate.device != "auto":
        device = settings.calibrate.device
    environment = detect(environ=variables)
    calibration, notices = open_calibration(
        _located(path, variables), on_stale=on_stale, environment=environment, environ=variables, clock=clock or SystemClock()
    )
    measured_device = calibration.device_of(device)
    require(calibration, effective_batch)
    plan = make_plan(
        calibration,
        effective_batch=effective_batch,
        world_size=world_size,
        objective=settings.plan.objective,
        # Consent given to the calibration is valid for its plans.
        accept_inexact=settings.plan.accept_inexact or None,
        min_micro_batch=settings.plan.min_micro_batch,
        device=measured_device,
        allocator=allocator_of_process(calibration, device=measured_device),
        free_bytes_now=free_bytes_now(environment, measured_device),
    )
    return plan.model_copy(update={"notices": (*notices, *plan.notices)})


def allocator_of_process(calibration: Calibration, *, device: str | None = None, current: PolicyName | None = None) -> PolicyName:
    """Return the policy for a plan of this process: the one in force (`current`), or `retain` if the calibration is for `retain`
    and `apply` can still put it into force."""
    name = in_force() if current is None else current
    calibrated = calibration.policy
    policy = "retain" if calibrated == "retain" and name == "default" else name
    return policy if calibration.finding(device=device, allocator=policy) is not None else name


def free_bytes_now(environment: Environment, device: str) -> int | None:
    """Bytes that a training on `device` can use at this moment: free memory, and memory that this process already holds.

    None: the device is unknown, or its free memory was not read.
    """
    if device == "cpu":
        status = read_status()
        own_bytes = 0 if status is None else status.hard_bytes
        return min(environment.memory.limit.value - environment.memory.used_bytes, environment.memory.available_bytes) + own_bytes
    kind, _, index = device.partition(":")
    accelerators = (
        accelerator
        for accelerator in environment.accelerators
        if (accelerator.kind, accelerator.index) == (kind, int(index or 0))
    )
    return next((accelerator.free_bytes for accelerator in accelerators), None)


def _located(path: Path | str | None, environ: Mapping[str, str]) -> Located:
    return find_calibration(Path.cwd(), environ) if path is None else Located(Path(path))


def open_calibration(
    located: Located,
    *,
    on_stale: OnStale,
    environment: Environment,
    environ: Mapping[str, str],
    clock: Clock,
    require_signature: bool = False,
) -> tuple[Calibration, tuple[str, ...]]:
    """Return the calibration with notices for its reader. `environment` is the result of `detect`.

    Raises:
        NoCalibration, UsageError: as for `load_calibration`.
    """
    if on_stale not in ("raise", "use"):
        raise UsageError(f"on_stale {on_stale!r} is not valid", try_='on_stale="raise" or on_stale="use"')
    place = located.path
    loaded = load(place, trust=find_trust(environ, require_signature=require_signature))
    if not isinstance(loaded, Loaded):
        raise refusal(loaded, place, spec=located.spec)
    stale = staleness(loaded.calibration, place, environment=environment, environ=environ, clock=clock)
    if stale is None:
        return loaded.calibration, (*loaded.notices, *moved(loaded.calibration.task, _identity(loaded.calibration, place)))
    if on_stale == "raise":
        raise refusal(stale, place, spec=loaded.calibration.task.spec)
    return loaded.calibration, (f"the calibration is stale ({stale})", *loaded.notices)


def staleness(
    calibration: Calibration, place: Path, *, environment: Environment, environ: Mapping[str, str], clock: Clock
) -> Stale | None:
    """Return the reason why the calibration at `place` is stale here and now, for its own task and options. None: it is not."""
    try:
        identity = _identity(calibration, place)
    except UsageError as error:
        return Stale(reason="other-task", detail=f"the task {calibration.task.spec} was not found: {error.what}")
    except UserCodeError as error:
        return Stale(reason="other-task", detail=error.what)
    fingerprint = fingerprint_of(environment, identity, calibration.options, environ=environ)
    return check(calibration, fingerprint, at=clock.now(), environment=environment, task=identity, options=calibration.options)


def _identity(calibration: Calibration, place: Path) -> TaskIdentity:
    """Return the current identity of the calibration's task. Its spec is relative to the folder of the calibrating process, which
    is not recorded: the working directory, the project around it, or the parent of the calibration's folder.

    Raises:
        UsageError: the task's file or module is in none of them.
    """
    other: TaskIdentity | None = None
    first_error: UsageError | None = None
    for folder in dict.fromkeys((Path.cwd(), find_project(Path.cwd()), place.absolute().parent.parent)):
        try:
            identity = identity_of(
                TaskReference(
                    spec=calibration.task.spec,
                    directory=str(folder),
                    arguments=calibration.task.arguments,
                    command=() if calibration.command is None else calibration.command.words,
                )
            )
        except UsageError as error:
            first_error = first_error or error
            continue
        if identity.digest == calibration.task.digest:
            return identity
        other = other or identity
    if other is not None:
        return other
    raise first_error or UsageError(f"the task {calibration.task.spec} was not found")
