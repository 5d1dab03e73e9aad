"""TaskReference + arguments -> ShapeEstimate, each in a child of its own. Nothing is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import Field, ValidationError

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.records.shape import Bytes, Scalar, ShapeEstimate
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.errors import UsageError
from batchcal.core.progress import Note, Progress, Silent
from batchcal.core.units import count_of
from batchcal.core.values import Frozen
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.launch import FunctionJob
from batchcal.guard.limits.watchdog import GroupMeter, trip_distance
from batchcal.guard.outcome import Infrastructure
from batchcal.guard.run import ChildLimits, run
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.deadline import Deadline
from batchcal.measure.outcomes import described
from batchcal.measure.shapes.job import BATCHES, TraceArguments, trace
from batchcal.values.calibration_events import CalibrationEvent, ShapeTraced
from batchcal.workload.spec.reference import TaskReference

LIMIT_S: Final = 60.0
"""Time limit for one shape. 256 layers of a transformer take 10 s per size."""
GRACE_S: Final = 120.0
"""Extra time: a size that has started is finished."""
POLICY: Final = "default"


def batches_by(rule: SizeRule | None) -> tuple[int, ...]:
    """Return the micro-batches to trace for a task that accepts sizes by `rule`. None: it accepts all sizes."""
    sizes = BATCHES if rule is None else tuple(rule.at_most(size) or rule.smallest for size in BATCHES)
    return tuple(dict.fromkeys(sizes))


class _Answer(Frozen):
    parameters: int = Field(ge=0)
    static_bytes: Bytes
    gradient_bytes: Bytes
    points: tuple[ShapePoint, ...]


def estimate_shapes(
    reference: TaskReference,
    shapes: Sequence[Mapping[str, Scalar]],
    *,
    seed: int = 0,
    batches: Sequence[int] = BATCHES,
    progress: Progress[CalibrationEvent] | None = None,
    environ: Mapping[str, str] | None = None,
    launchers: Launchers | None = None,
    neighbours: bool = False,
    memory_limit_bytes: int | None = None,
    deadline: Deadline | None = None,
) -> tuple[ShapeEstimate, ...]:
    """Estimate the memory of the task with its own arguments first, then with each of `shapes` on top of them.

    Events: `shape_traced` for each.

    Args:
        batches: micro-batches to trace a step with. Empty: the estimates have no points.
        launchers: launchers of the children, which stay open. None: the function creates its own.
        neighbours: other processes start and end in the memory group meanwhile.
        memory_limit_bytes: maximum memory of a child. None: the free memory.
        deadline: shapes that are not traced by then stay untraced, with that reason.

    Raises:
        UsageError: the task does not accept such an argument.
        GuardError: no child could be started.
    """
    progress = progress or Silent()
    estimates: list[ShapeEstimate] = []
    active_launchers = launchers or Launchers(
        os.environ if environ is None else environ,
        note=lambda text: progress.event(Note(text)),
        spawn_only=False,
    )
    policy = next(iter(active_launchers.running), POLICY)
    meter = memory_meter()
    try:
        for shape in ({}, *shapes):
            changed = reference.model_copy(update={"arguments": {**reference.arguments, **shape}})
            request = TraceArguments(reference=changed, seed=seed, batches=tuple(batches), limit_s=LIMIT_S)
            job = FunctionJob(
                trace,
                request.model_dump(mode="json"),
                reference.directory,
                active_launchers.environment(policy),
            )
            limits = _limits(meter, memory_limit_bytes, deadline, neighbours=neighbours)
            if limits.total_s == 0:
                estimate = _untraced(dict(shape), f"{limits.total_name} ended before this shape was traced")
            else:
                ending = run(job, active_launchers.get(policy), meter, limits)
                estimate = _estimate(dict(shape), ending, needs_points=bool(batches))
            estimates.append(estimate)
            text = " ".join(f"{name}={value}" for name, value in shape.items()) or "as calibrated"
            progress.event(ShapeTraced(arguments=text, parameters=estimate.parameters, why=estimate.why or None))
    finally:
        if launchers is None:
            active_launchers.close()
        meter.close()
    return tuple(estimates)


def _limits(meter: GroupMeter, memory_limit_bytes: int | None, deadline: Deadline | None, *, neighbours: bool) -> ChildLimits:
    room = max(0, meter.limit_bytes - trip_distance(meter.limit_bytes, armed=False) - meter.hard_bytes())
    return ChildLimits(
        allowed_bytes=room if memory_limit_bytes is None else min(room, memory_limit_bytes),
        phase_s={"load": LIMIT_S + GRACE_S, "measure": LIMIT_S + GRACE_S},
        total_s=None if deadline is None else deadline.left_s(),
        total_name="" if deadline is None else deadline.name,
        neighbours=neighbours,
    )


def _estimate(arguments: dict[str, Scalar], ending: Ending, *, needs_points: bool) -> ShapeEstimate:
    if not ending.has_result:
        outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
        why = described(outcome)
        if ending.raised is not None and ending.raised.chain[0].is_a(UsageError):
            raise UsageError(why.partition(": ")[2] or why, try_="--shape NAME=VALUE with the name of a parameter of the factory")
        return _untraced(arguments, why)
    try:
        answer = _Answer.model_validate(ending.returned)
    except ValidationError as error:
        why = f"the measuring process returned an invalid answer ({count_of(error.error_count(), 'invalid field')})"
        return _untraced(arguments, why)
    return ShapeEstimate(
        arguments=arguments,
        parameters=answer.parameters,
        static_bytes=answer.static_bytes,
        gradient_bytes=answer.gradient_bytes,
        points=answer.points,
        why="" if answer.points or not needs_points else "its step could not be traced in time",
    )


def _untraced(arguments: dict[str, Scalar], why: str) -> ShapeEstimate:
    return ShapeEstimate(arguments=arguments, parameters=0, static_bytes=0, gradient_bytes=0, points=(), why=why)
