"""Check if a calibration is still valid. It is fresh only if all checks pass. The time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pydantic import BaseModel

from batchcal.calibration.fingerprint import NOT_IDENTIFYING
from batchcal.calibration.schema import TIME_TO_LIVE, Calibration, Fingerprint, Options
from batchcal.calibration.stale import Stale, StaleReason
from batchcal.core.units import format_bytes, format_seconds
from batchcal.detect.environment import Environment
from batchcal.workload.spec.identity import TaskIdentity

CLOCK_SKEW: Final = timedelta(minutes=10)
"""Allowed difference between the clocks of two machines on one volume. NTP keeps it within seconds."""
MEMORY_TOLERANCE: Final = 0.02
"""Limits use different units (1 GB and 1 GiB differ by 7 %), but rounding by a page or a MiB does not matter."""


class _Today(NamedTuple):
    environment: Environment | None
    task: TaskIdentity | None
    options: Options | None


def check(
    calibration: Calibration,
    fingerprint: Fingerprint,
    *,
    at: datetime,
    environment: Environment | None = None,
    task: TaskIdentity | None = None,
    options: Options | None = None,
) -> Stale | None:
    """Return None if fresh, else the first reason in this order: time, machine, software, task and options.

    `fingerprint` was computed from `environment`, `task` and `options`. With them, the detail contains the old and the current
    value, without them only the old one.
    """
    late = check_age(calibration.created_at, at=at, expires_at=calibration.expires_at)
    if late is not None:
        return late
    reason = differs(calibration.fingerprint, fingerprint)
    if reason is None:
        return None
    return Stale(reason=reason, detail=_detail(reason, calibration, fingerprint, _Today(environment, task, options)))


def check_age(created_at: datetime, *, at: datetime, expires_at: datetime | None = None) -> Stale | None:
    """Return Stale if older than seven days, past its own (earlier) expiry, or dated in the future. All times are aware."""
    age = at - created_at
    if age < -CLOCK_SKEW:
        return Stale(
            reason="future-dated",
            detail=f"created at {_moment(created_at)}, {format_seconds(-age.total_seconds())} in the future: a clock is wrong",
        )
    if age >= TIME_TO_LIVE or (expires_at is not None and at >= expires_at):
        return Stale(
            reason="expired",
            detail=f"created at {_moment(created_at)}, {format_seconds(max(age.total_seconds(), 0.0))} ago; "
            f"a calibration is valid for {TIME_TO_LIVE.days} days",
        )
    return None


def differs(then: Fingerprint, now: Fingerprint) -> StaleReason | None:
    """Return the first part in which two fingerprints differ. None: they agree."""
    comparisons: tuple[tuple[StaleReason, bool], ...] = (
        ("other-cpu", then.cpu == now.cpu),
        ("other-memory", _close(then.memory_limit_bytes, now.memory_limit_bytes)),
        ("other-accelerator", then.accelerator == now.accelerator),
        ("other-os", then.os == now.os),
        ("other-python", then.python == now.python),
        ("other-torch", then.torch == now.torch),
        # Policies that were not measured then are not a reason: a plan cannot name them.
        ("other-allocator", all(now.allocators.get(name) == digest for name, digest in then.allocators.items())),
        ("other-task", then.task == now.task),
        ("other-options", then.options == now.options),
    )
    return next((reason for reason, agrees in comparisons if not agrees), None)


def moved(then: TaskIdentity, now: TaskIdentity) -> tuple[str, ...]:
    """Return a notice if the same task was calibrated in another folder. Its data may be different there."""
    if then.folder is None or then.folder == now.folder:
        return ()
    return (f"calibrated in another folder, {then.folder}: the code is the same, but relative paths may refer to other data",)


def _close(then: int, now: int) -> bool:
    return abs(now - then) <= MEMORY_TOLERANCE * then


def _detail(reason: StaleReason, calibration: Calibration, fingerprint: Fingerprint, today: _Today) -> str:
    match reason:
        case "other-memory":
            was, now = calibration.fingerprint.memory_limit_bytes, fingerprint.memory_limit_bytes
            return f"measured with a memory limit of {format_bytes(was)}, now it is {format_bytes(now)}"
        case "other-task":
            return _task_detail(calibration.task, today.task)
        case "other-options":
            return _options_detail(calibration.options, today.options)
        case "other-allocator":
            return _allocator_detail(calibration.fingerprint.allocators, fingerprint.allocators)
    was_text = _machine(reason, calibration.environment)
    if today.environment is None:
        return f"measured on {was_text}, now it is different"
    now_text = _machine(reason, today.environment)
    if now_text == was_text:
        return f"measured on {was_text}; it differs now in a detail that this description does not show"
    return f"measured on {was_text}, now it is {now_text}"


def _machine(reason: StaleReason, environment: Environment) -> str:
    software = environment.software
    match reason:
        case "other-cpu":
            cpu = environment.cpu
            return f"{cpu.model or 'an unnamed CPU'}, {cpu.cores.value:g} of {cpu.visible} cores ({cpu.architecture})"
        case "other-os":
            return f"{software.os}, {software.libc}"
        case "other-python":
            return f"Python {software.python}"
        case "other-torch":
            cuda = f" with CUDA {software.cuda}" if software.cuda else ""
            return f"torch {software.torch or 'unknown'}{cuda}"
    accelerators = [f"{accelerator.name} ({format_bytes(accelerator.total_bytes)})" for accelerator in environment.accelerators]
    return ", ".join(accelerators) or "no accelerator"


def _task_detail(then: TaskIdentity, now: TaskIdentity | None) -> str:
    if now is None:
        return f"measured for {then.spec}, whose code or arguments have changed"
    if then.hashes != now.hashes:
        return f"measured for {then.spec} by an earlier version of batchcal, which compared sources byte by byte"
    if then.spec.rpartition("/")[2] != now.spec.rpartition("/")[2]:
        return f"measured for {then.spec}, now it is {now.spec}"
    changed = [*_changed(then.arguments, now.arguments), *(f"{name} was edited" for name in _edited(then.sources, now.sources))]
    return f"measured for {then.spec}; since then " + ("; ".join(changed[:4]) or "it changed")


def _allocator_detail(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = next(name for name in sorted(then) if now.get(name) != then[name])
    return f"the library of allocator {changed} {'has changed since the measurement' if changed in now else 'no longer exists'}"


def _options_detail(then: Options, now: Options | None) -> str:
    if now is None:
        return "measured with other options"
    left_out = set(NOT_IDENTIFYING)
    changed = _changed(_plain(then, left_out), _plain(now, left_out))
    return "measured with other options: " + ("; ".join(changed[:4]) or "the defaults changed")


def _plain(value: BaseModel, left_out: set[str]) -> dict[str, object]:
    fields: dict[str, object] = value.model_dump(exclude=left_out)
    return fields


def _changed(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    unset = "not set"
    return [
        f"{name} was {then.get(name, unset)}, now it is {now.get(name, unset)}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name, unset) != now.get(name, unset)
    ]


def _edited(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]


def _moment(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="minutes")
