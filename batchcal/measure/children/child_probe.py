"""ChildProbe: the probe that runs the user's own step in fenced children, one launcher per allocator policy."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, get_args

from pydantic import ValidationError

from batchcal.calibration.schema import OFF, Budget, Isolation, Mode, Options
from batchcal.calibration.speed import StepTime
from batchcal.core.errors import GuardError
from batchcal.core.units import MIB
from batchcal.detect.environment import Environment
from batchcal.guard.cgroup import MemoryGroup as ControlGroup
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.launch import Job, Launcher
from batchcal.guard.meters import read_status
from batchcal.guard.outcome import Fits, Infrastructure
from batchcal.guard.run import Limits, Listener, run
from batchcal.guard.watchdog import MemoryGroup, trip_distance
from batchcal.guard.wire import JSON, Message
from batchcal.measure.attempts import said
from batchcal.measure.budget import host_budget_of
from batchcal.measure.children import answers
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.children.probe import (
    Examination,
    LapReport,
    LapRequest,
    ProbeReport,
    ProbeRequest,
    RehearsalReport,
    RehearsalRequest,
)
from batchcal.measure.children.request import ExamineArguments, ProbeArguments, Setting
from batchcal.measure.race.request import LapArguments
from batchcal.measure.rehearsal.request import RehearsalArguments
from batchcal.workload.reference import TaskReference

UNSHARED_BYTES: Final = 16 * MIB
"""What a forked child and its zygote hold twice once the child has written to shared pages (seen: 4 to 12 MiB with gc.freeze)."""
ZYGOTE_BYTES: Final = 240 * MIB
"""Anonymous memory of a zygote: 219 to 229 MiB with torch 2.13 on CPU, most of it what linking its libraries writes."""
LIBRARY_BYTES: Final = 384 * MIB
"""Pages of torch's libraries that are in use. Where zygotes leave no room for them they are thrown out and read again: in 1 GiB
four zygotes at once took longer than one after the other."""
LAP_LEAST_S: Final = 0.3
"""The first size of a lap is timed for so long; the others over the same samples."""
LAP_GRACE_S: Final = 10.0
"""A size that was begun is ended."""
REHEARSAL_GRACE_S: Final = 30.0
"""So are groups and evaluations that no limit cuts short."""
LOAD_LIMIT_S: Final = (30.0, 300.0)
WARM_UP_LIMIT_S: Final = (60.0, 900.0)
"""Least and most. torch.compile takes minutes for large models; it is warmed up, not timed out."""
LOAD_LIMIT_FACTOR: Final = 5.0
WARM_UP_LIMIT_FACTOR: Final = 15.0
"""So many time limits: a minute is no reason to break a compilation off; five seconds are one not to wait for 15 minutes."""


class ChildProbe:
    """Measures in children. `settings` gives, by device, what every child of that device gets."""

    def __init__(
        self,
        settings: Mapping[str, Setting],
        group: MemoryGroup,
        *,
        host_budget_bytes: int,
        note: Callable[[str], None],
        time_limit_s: float = 60.0,
        environ: Mapping[str, str] | None = None,
        isolation: str | None = None,
        launchers: Launchers | None = None,
        neighbours: bool = False,
    ) -> None:
        """Args:
        launchers: who starts the children, and is not closed. None: somebody of its own.
        neighbours: others come and go in the memory group: what it holds more is not held against the child.
        """
        self._neighbours = neighbours
        self._settings = dict(settings)
        self._group = group
        self._host_budget = host_budget_bytes
        self._phase_s = {
            "load": _bounded(LOAD_LIMIT_S, time_limit_s * LOAD_LIMIT_FACTOR),
            "warm-up": _bounded(WARM_UP_LIMIT_S, time_limit_s * WARM_UP_LIMIT_FACTOR),
        }
        variables = os.environ if environ is None else environ
        self._are_lent = launchers is not None
        self._launchers = launchers or Launchers(variables, note=note, spawn_only=isolation == "spawn")
        self._examined: dict[str, Examination] = {}
        """By device, whatever the policy was."""
        self._orders: dict[tuple[str, Mode], tuple[int, ...]] = {}
        """The largest samples by device and mode."""
        self._stay: frozenset[str] = frozenset()
        """Policies that are timed in turn need not start anew each time."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Loads the task once in a child: facts, static shapes, what a tiny step holds. See `Probe`."""
        arguments = ExamineArguments(
            setting=self._settings[device],
            budget_bytes=budget_bytes,
            limit_s=limit_s,
            known=self._examined.get(device),
            order=self._orders.get((device, "train")),
        )
        limits = Limits(allowed_bytes=self._most_allowed(allocator), phase_s=self._phase_s, neighbours=self._neighbours)
        ending = self._run("batchcal.measure.inside.child:examine", arguments.model_dump(mode="json"), allocator, limits)
        if not ending.has_result and ending.phase == "measure":
            # Past the first real steps: what crashed or hung is the model without memory, which it need not bear.
            untraced = arguments.model_copy(update={"traced": False})
            ending = self._run("batchcal.measure.inside.child:examine", untraced.model_dump(mode="json"), allocator, limits)
        if not ending.has_result:
            raise answers.failure(ending, self._host_budget)
        value = ending.returned if isinstance(ending.returned, dict) else {}
        try:
            examination = Examination.model_validate(value.get("examination"))
        except ValidationError as error:
            known = f"{error.error_count()} fields of it are wrong"
            raise GuardError("the examination of the task gave no usable answer", known=known) from error
        if device not in self._examined:
            self._examined[device] = examination
            for mode in get_args(Mode):
                order = value.get(mode)
                if isinstance(order, list):
                    self._orders[device, mode] = tuple(index for index in order if isinstance(index, int))
        return examination

    def measure(self, request: ProbeRequest) -> ProbeReport:
        """One probe. See `Probe`."""
        self._stay = frozenset()
        setting = self._settings[request.device]
        accelerated = not request.device.startswith("cpu")
        allowed = self._most_allowed(request.allocator)
        if not accelerated:
            allowed = min(request.allowed_bytes, allowed)
        arguments = ProbeArguments(
            setting=setting,
            batch=request.batch,
            mode=request.mode,
            train_batch=request.train_batch,
            samples=request.samples,
            least_steps=request.least_steps,
            train_steps=request.train_steps,
            order=self._orders.get((request.device, request.mode)),
            train_order=self._orders.get((request.device, "train")),
            accelerator_allowed_bytes=request.allowed_bytes if accelerated else None,
        )
        deadline = max(request.deadline_s or 600.0, 5.0)
        limits = Limits(
            allowed_bytes=allowed,
            phase_s={**self._phase_s, "measure": deadline},
            host_fence=not accelerated and setting.workers == 0,
            neighbours=self._neighbours,
        )
        began = time.monotonic()
        ending = self._run("batchcal.measure.inside.child:probe", arguments.model_dump(mode="json"), request.allocator, limits)
        within = self._within(request.device, request.allocator, request.budget_bytes, workers=setting.workers)
        outcome = classify(ending, lambda value: answers.probed(value, ending, within, request.batch))
        layers = ("prediction", *ending.layers, *(("accelerator-fraction",) if request.device.startswith("cuda") else ()))
        isolation = Isolation(launcher=self._launchers.get(request.allocator).name, fence=layers, missing=ending.missing)
        notes = answers.notes(ending.returned)
        return ProbeReport(outcome=outcome, isolation=isolation, wall_s=time.monotonic() - began, notes=notes)

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Starts a launcher for each of `allocators`, where there is room for all of them. See `Probe`."""
        self._stay = frozenset()
        missing = sum(name not in self._launchers.there for name in allocators)
        free = self._group.limit_bytes - self._group.hard_bytes() - missing * ZYGOTE_BYTES
        if free >= demand_bytes + LIBRARY_BYTES:
            self._stay = frozenset(allocators)
            self._launchers.start_all(allocators)

    def lap(self, request: LapRequest) -> LapReport:
        """Times micro-batches in one child. See `Probe`."""
        times: list[StepTime] = []

        def listen(message: Message) -> None:
            with contextlib.suppress(ValidationError):  # a child whose memory was overwritten may say anything
                times.append(StepTime.model_validate(message.get("time")))

        accelerated = not request.device.startswith("cpu")
        allowed = self._most_allowed(request.allocator)
        limits = Limits(
            allowed_bytes=allowed if accelerated else min(request.allowed_bytes, allowed),
            phase_s={**self._phase_s, "measure": request.limit_s + LAP_GRACE_S},
            host_fence=not accelerated,
            neighbours=self._neighbours,
        )
        arguments = LapArguments(
            setting=self._settings[request.device],
            micro_batches=request.micro_batches,
            threads=request.threads,
            rounds=request.rounds,
            samples=request.samples,
            least_s=LAP_LEAST_S,
            limit_s=request.limit_s,
            order=self._orders.get((request.device, "train")),
            accelerator_allowed_bytes=request.allowed_bytes if accelerated else None,
        )
        values = arguments.model_dump(mode="json")
        ending = self._run("batchcal.measure.race.lap:lap", values, request.allocator, limits, listen=listen)
        outcome = classify(ending, lambda value: Infrastructure(detail=""))
        return LapReport(times=tuple(times), why_ended="" if ending.has_result else said(outcome))

    def rehearse(self, request: RehearsalRequest) -> RehearsalReport:
        """A whole plan in one child. See `Probe`."""
        plan = request.plan
        accelerated = not plan.device.startswith("cpu")
        allowed = self._most_allowed(plan.allocator)
        limits = Limits(
            allowed_bytes=allowed if accelerated else min(request.allowed_bytes, allowed),
            phase_s={**self._phase_s, "measure": request.limit_s + REHEARSAL_GRACE_S},
            host_fence=not accelerated and plan.num_workers == 0,
            neighbours=self._neighbours,
        )
        changes: dict[str, object] = {"intra_op_threads": plan.intra_op_threads, "interop_threads": plan.interop_threads}
        if request.keep_activations:
            changes["activation_checkpointing"] = OFF
        arguments = RehearsalArguments(
            setting=self._settings[plan.device].model_copy(update=changes),
            plan=plan,
            micro_batches=request.micro_batches,
            eval_batches=request.eval_batches,
            worst_case=request.worst_case,
            least_s=request.least_s,
            limit_s=request.limit_s,
            order=self._orders.get((plan.device, "train")),
            eval_order=self._orders.get((plan.device, "eval")),
            accelerator_allowed_bytes=request.allowed_bytes if accelerated else None,
        )
        began = time.monotonic()
        heard: list[Message] = []
        values = arguments.model_dump(mode="json")
        ending = self._run("batchcal.measure.rehearsal.child:rehearse", values, plan.allocator, limits, listen=heard.append)
        within = self._within(plan.device, plan.allocator, request.budget_bytes, workers=plan.num_workers)
        outcome = classify(ending, lambda value: answers.rehearsed(value, ending, within, request))
        times = answers.rehearsal_times(ending.returned) if isinstance(outcome, Fits) else None
        evaluating = answers.evaluating(ending.returned, within, heard=bool(heard))
        return RehearsalReport(outcome=outcome, times=times, evaluating=evaluating, wall_s=time.monotonic() - began)

    def close(self) -> None:
        """No process, no file of ours stays."""
        if not self._are_lent:
            self._launchers.close()

    def _run(
        self, function: str, arguments: dict[str, JSON], allocator: str, limits: Limits, *, listen: Listener | None = None
    ) -> Ending:
        setting = next(iter(self._settings.values()))
        job = Job(function, arguments, setting.reference.directory, self._launchers.environment(allocator))
        try:
            return run(job, self._launcher(allocator), self._group, limits, listen)
        except GuardError:
            self._launchers.drop(allocator)  # the zygote died: a new one, once; the caller retries what was lost
            return run(job, self._launcher(allocator), self._group, limits, listen)

    def _launcher(self, allocator: str) -> Launcher:
        if allocator not in self._stay:
            self._launchers.keep_only(allocator)
        return self._launchers.get(allocator)

    def _within(self, device: str, allocator: str, budget_bytes: int, *, workers: int) -> answers.Within:
        # Workers' batches come and go between two looks of the child; the group saw them all.
        by_group = workers > 0 and isinstance(self._group, ControlGroup) and not self._neighbours
        return answers.Within(
            device=device,
            budget_bytes=budget_bytes,
            host_budget_bytes=self._host_budget,
            group_base_bytes=self._shared_bytes(allocator) if by_group else None,
        )

    def _most_allowed(self, allocator: str) -> int:
        """Demand (as a training would have it) at which the group would be as full as the fence lets it be."""
        limit, shared = self._group.limit_bytes, self._shared_bytes(allocator)
        room = limit - trip_distance(limit, armed=True) - self._group.hard_bytes()
        return max(0, room + shared - (UNSHARED_BYTES if shared else 0))

    def _shared_bytes(self, allocator: str) -> int:
        """What a child holds together with the zygote that it was forked from, which a training holds alone."""
        pid = self._launcher(allocator).overhead_pid
        status = None if pid is None else read_status(pid)
        return 0 if status is None else status.anonymous_bytes


def child_probe(
    reference: TaskReference,
    options: Options,
    environment: Environment,
    budgets: Mapping[str, Budget],
    meter: MemoryGroup,
    *,
    note: Callable[[str], None],
    launchers: Launchers | None = None,
    neighbours: bool = False,
) -> ChildProbe:
    """The probe for the task behind `reference` on the devices of `budgets`; see `ChildProbe` for the last two."""
    free = {f"{item.kind}:{item.index}": item.free_bytes for item in environment.accelerators}
    host = budgets.get("cpu") or host_budget_of(environment, options)
    settings = {
        device: Setting(
            reference=reference,
            device=device,
            seed=options.seed,
            activation_checkpointing=options.activation_checkpointing,
            intra_op_threads=environment.optimal_threads,
            workers=options.workers or 0,
            smallest_batch=max(2, options.multiple_of),
            accelerator_free_bytes=free.get(device),
        )
        for device in budgets
    }
    return ChildProbe(
        settings,
        meter,
        host_budget_bytes=host.budget_bytes,
        note=note,
        time_limit_s=options.time_limit_s,
        launchers=launchers,
        neighbours=neighbours,
    )


def _bounded(bounds: tuple[float, float], seconds: float) -> float:
    least, most = bounds
    return min(max(seconds, least), most)
