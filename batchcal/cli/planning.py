"""What `plan`, `exec` and `train` share: a calibration that holds here and now, and the plan that the settings ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcal.calibration.schema import Calibration
    from batchcal.core.settings import Settings
    from batchcal.detect.environment import Environment
    from batchcal.plan.plan import Plan


@dataclass(frozen=True)
class Opened:
    """A calibration to plan with, and the machine as it is now."""

    calibration: Calibration
    here: Environment
    notices: tuple[str, ...] = ()


def open_here(path: Path | str | None, *, require_signature: bool) -> Opened:
    """The calibration at `path`, by default the project's.

    Raises:
        NoCalibration: there is none that holds here and now.
    """
    import os

    from batchcal.core.clock import SystemClock
    from batchcal.detect.detect import detect
    from batchcal.plan.load import open_calibration

    here = detect()
    calibration, notices = open_calibration(
        path, on_stale="raise", here=here, environ=os.environ, clock=SystemClock(), require_signature=require_signature
    )
    return Opened(calibration=calibration, here=here, notices=notices)


def device_of(opened: Opened, asked: str | None) -> str | None:
    """The measured device that is meant; None: nobody asked for one."""
    return None if asked in (None, "auto") else opened.calibration.device_of(asked)


def allocator_of(asked: str | None) -> str | None:
    """The policy that is meant; None: the one that the calibration is for."""
    return None if asked == "auto" else asked


def plan_of(
    opened: Opened, settings: Settings, *, world_size: int = 1, device: str | None = None, allocator: str | None = None
) -> Plan:
    """The plan for the effective batch and the objective of `settings`.

    Raises:
        UsageError, NoCalibration: see `make_plan`.
    """
    from batchcal.cli.desk import objective_of
    from batchcal.core import settings as knobs
    from batchcal.plan.load import free_bytes_now
    from batchcal.plan.make import make_plan

    calibration, on = opened.calibration, device_of(opened, device)
    plan = make_plan(
        calibration,
        effective_batch=settings.value(knobs.EFFECTIVE_BATCH),
        world_size=world_size,
        objective=objective_of(settings.value(knobs.OBJECTIVE)),
        device=on,
        allocator=allocator_of(allocator),
        free_bytes_now=free_bytes_now(opened.here, on or calibration.chosen_device),
    )
    return plan.model_copy(update={"notices": (*opened.notices, *plan.notices)})
