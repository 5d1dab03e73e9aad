"""Common code of `plan`, `exec` and `train`: a calibration that is valid here and now, and its plan for the settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchcal.calibration.store import check_settled
from batchcal.core.clock import SystemClock
from batchcal.detect.detect import detect
from batchcal.machine.allocator import AUTO, resolve
from batchcal.plan.effective_batch import require
from batchcal.plan.load import free_bytes_now, open_calibration
from batchcal.plan.make import make_plan

if TYPE_CHECKING:
    from batchcal.calibration.locate import Located
    from batchcal.calibration.schema import Calibration
    from batchcal.detect.environment import Environment
    from batchcal.plan.plan import Plan
    from batchcal.values.settings import Settings


@dataclass(frozen=True)
class ValidCalibration:
    """A calibration to plan with, and the machine as it is now."""

    calibration: Calibration
    environment: Environment
    notices: tuple[str, ...] = ()


def open_valid(located: Located, *, require_signature: bool, require_settled: bool) -> ValidCalibration:
    """Open the calibration that was located.

    Raises:
        NoCalibration: there is no calibration that is valid here and now, or its search must have finished and has not.
    """
    environment = detect()
    calibration, notices = open_calibration(
        located,
        on_stale="raise",
        environment=environment,
        environ=os.environ,
        clock=SystemClock(),
        require_signature=require_signature,
    )
    if require_settled:
        check_settled(calibration)
    return ValidCalibration(calibration=calibration, environment=environment, notices=notices)


def device_of(valid: ValidCalibration, settings: Settings) -> str | None:
    """Return the measured device that the settings name. None: the device that the calibration chose."""
    name = settings.calibrate.device
    return None if name == "auto" else valid.calibration.device_of(name)


def allocator_of(settings: Settings) -> str | None:
    """Return the policy that the settings name. None: the policy that the calibration is for."""
    name = settings.calibrate.allocator
    return None if name == AUTO else resolve(name).name


def plan_of(valid: ValidCalibration, settings: Settings, *, world_size: int = 1, needs_effective_batch: bool = True) -> Plan:
    """Return the plan for the effective batch, the objective, the device and the allocator of `settings`.

    Args:
        needs_effective_batch: the plan is for a training, so the user must have set the effective batch.

    Raises:
        UsageError, NoCalibration: see `make_plan`.
    """
    calibration, device = valid.calibration, device_of(valid, settings)
    effective_batch = settings.plan.effective_batch
    if needs_effective_batch:
        require(calibration, effective_batch)
    plan = make_plan(
        calibration,
        effective_batch=effective_batch,
        world_size=world_size,
        objective=settings.plan.objective,
        # Consent that was given to the calibration applies to its plans.
        accept_inexact=settings.plan.accept_inexact or None,
        min_micro_batch=settings.plan.min_micro_batch,
        device=device,
        allocator=allocator_of(settings),
        free_bytes_now=free_bytes_now(valid.environment, device or calibration.chosen_device),
    )
    return plan.model_copy(update={"notices": (*valid.notices, *plan.notices)})
