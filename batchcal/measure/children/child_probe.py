"""ChildProbe: the probe that runs the user's own step in fenced children, one launcher per allocator policy."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.schema import OFF, Budget, Mode, Options
from batchcal.core.errors import Interrupted
from batchcal.detect.environment import Environment
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.classify import classify, swapped
from batchcal.guard.ending import Ending
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Suspect
from batchcal.machine.allocator import maps_large_blocks
from batchcal.machine.cgroup import MemoryGroup
from batchcal.measure.budget import host_budget_of
from batchcal.measure.children import answers
from batchcal.measure.children.examiner import Examiner
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.children.probe import (
    Examination,
    InterruptedAfterTraining,
    Observation,
    ProbeRequest,
    RehearsalRequest,
    TimingReport,
    TimingRequest,
)
from batchcal.measure.children.probe_job import ProbeArguments, probe
from batchcal.measure.children.runner import ChildRunner
from batchcal.measure.children.setting import SMALLEST, ChildSetting
from batchcal.measure.deadline import Deadline
from batchcal.measure.heap import counting
from batchcal.measure.heap.lost_blocks import LostBlocks
from batchcal.measure.heap.trial import HeapReading, HeapReport, HeapRequest
from batchcal.measure.heap.varied_job import HeapArguments, train_varied
from batchcal.measure.outcomes import allowed_for, described
from batchcal.measure.race.timing_job import TimingArguments, time_sizes
from batchcal.measure.rehearsal.job import RehearsalArguments, rehearse
from batchcal.measure.workers.job import WorkersArguments, examine_workers
from batchcal.measure.workers.report import reported
from batchcal.measure.workers.trial import MOST_FRESH_WORKER_S, WorkersReport, WorkersRequest
from batchcal.workload.spec.reference import TaskReference

TIMING_GRACE_S: Final = 10.0
"""Extra time for a timing: a size that has started is finished."""
REHEARSAL_GRACE_S: Final = 30.0
"""Extra time for a rehearsal: no limit cuts groups and evaluations short."""
VARIED_GRACE_S: Final = 30.0
"""Extra time for the step of the largest batch, which comes last."""


class ChildProbe:
    """Measures in children. `settings` maps each device to the setting of all its children."""

    def __init__(
        self,
        settings: Mapping[str, ChildSetting],
        group: GroupMeter,
        *,
        host_budget_bytes: int,
        host_allowed_bytes: int | None = None,
        note: Callable[[str], None],
        deadline: Deadline | None = None,
        printed: Callable[[str], None] = lambda text: None,
        environ: Mapping[str, str] | None = None,
        isolation: str | None = None,
        launchers: Launchers | None = None,
        neighbours: bool = False,
    ) -> None:
        """Args:
        host_allowed_bytes: host memory that no child may exceed in any kind of run. None: the memory that a probe may use.
        deadline: end of every child. None: no deadline.
        launchers: launchers of the children, which stay open. None: the probe creates its own.
        printed: called with the end of the task's output in its first examination.
        neighbours: other processes start and end in the memory group, so its growth is not counted against the child.
        """
        variables = os.environ if environ is None else environ
        left_s = (lambda: math.inf) if deadline is None else deadline.left_s
        self._launchers_are_shared = launchers is not None
        self._launchers = launchers or Launchers(variables, note=note, spawn_only=isolation == "spawn", left_s=left_s)
        self._settings = dict(settings)
        self._group = group
        self._host_budget = host_budget_bytes
        self._runner = ChildRunner(
            launchers=self._launchers,
            group=group,
            host_allowed_bytes=allowed_for(host_budget_bytes) if host_allowed_bytes is None else host_allowed_bytes,
            directory=next(iter(self._settings.values())).reference.directory,
            deadline=deadline,
            neighbours=neighbours,
        )
        self._examiner = Examiner(self._runner, self._settings, host_budget_bytes, printed)
        self._lost_blocks = LostBlocks(self._runner)
        self._peak_bytes: int | None = None
        """Largest peak of a batch that fitted. None: none has."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """See `Probe`."""
        return self._examiner.examine(device, allocator, budget_bytes, limit_s)

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        """See `Probe`."""
        return self._examiner.sizes_that_run(device, allocator, sizes, limit_s)

    def set_size_rule(self, rule: SizeRule) -> None:
        """See `Probe`."""
        self._lost_blocks.set_largest_size(rule.most)
        for device, setting in self._settings.items():
            # One sample stays the tiny batch if two do not fit.
            smallest = rule.smallest if rule.smallest > SMALLEST else min(setting.smallest_batch, SMALLEST)
            changes = {"smallest_batch": smallest, "multiple_of": rule.multiple_of, "one_size": rule.one_size}
            self._settings[device] = setting.model_copy(update=changes)

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        """See `Probe`."""
        return self.measure(request) if isinstance(request, ProbeRequest) else self.rehearse(request)

    def measure(self, request: ProbeRequest) -> Observation:
        """Run steps at one size."""
        self._runner.end_alternation()
        self._launchers.drop_starting()  # the race that they were for is over, or was not run
        self._runner.make_room(request.allocator, request.predicted_bytes)
        setting = self._settings[request.device].under(request.setup)
        if request.one_size:
            setting = setting.model_copy(update={"one_size": True})
        loses_blocks = bool(setting.workers) and request.device == "cpu" and maps_large_blocks(request.allocator)
        if loses_blocks:
            curve = () if (known := self._examiner.examined.get(request.device)) is None else known.shapes["train"]
            counted = self._lost_blocks.count(setting, request.allocator, curve, self._order(request.device, "train"))
            setting = setting.model_copy(update={"lost_blocks": counted})
        on_host = request.device.startswith("cpu")
        arguments = ProbeArguments(
            setting=setting,
            request=request,
            order=self._order(request.device, request.mode),
            train_order=self._order(request.device, "train"),
            eval_order=self._order(request.device, "eval"),
        )
        limits = self._runner.limits(
            request.allocator,
            max(request.deadline_s or 600.0, 5.0),
            allowed_bytes=request.allowed_bytes if on_host else None,
            host_fence=on_host and setting.workers == 0,
        )
        start_s = time.monotonic()
        messages: list[Message] = []
        memory_limits = self._memory_limits(request.device, request.allocator, request.budget_bytes, workers=setting.workers)
        try:
            ending = self._runner.run(probe, arguments.model_dump(mode="json"), request.allocator, limits, listen=messages.append)
        except Interrupted as error:
            if (trained := _trained(messages)) is None:
                raise
            outcome = answers.probe_outcome(trained, Ending(), memory_limits, request.batch)
            isolation = self._runner.isolation(Ending(), request.device, request.allocator)
            wall_s = time.monotonic() - start_s
            raise InterruptedAfterTraining(
                error, Observation(outcome=outcome, isolation=isolation, wall_s=wall_s, notes=answers.notes(trained))
            ) from error
        outcome, evaluation = _training_and_evaluation(ending, messages, memory_limits, request)
        if isinstance(outcome, OutOfMemory) and outcome.source != "budget" and len(self._launchers.running) > 1:
            # The processes of other policies took a part of the memory: only a run without them is a verdict.
            return self.measure(request.model_copy(update={"predicted_bytes": None}))
        if isinstance(outcome, Fits):
            self._peak_bytes = max(self._peak_bytes or 0, outcome.peak.demand_bytes)
        if isinstance(evaluation, Fits):
            self._peak_bytes = max(self._peak_bytes or 0, evaluation.peak.demand_bytes)
        if isinstance(evaluation, OutOfMemory) and evaluation.source != "budget" and len(self._launchers.running) > 1:
            evaluation = None  # an evaluation alone will decide
        isolation = self._runner.isolation(ending, request.device, request.allocator)
        notes = answers.notes(ending.returned if ending.has_result else _trained(messages))
        if loses_blocks and setting.lost_blocks is None:
            notes += (counting.UNKNOWN,)
        wall_s = time.monotonic() - start_s
        return Observation(outcome=outcome, isolation=isolation, wall_s=wall_s, notes=notes, evaluation=evaluation)

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """See `Probe`."""
        self._runner.expect(allocators, demand_bytes)

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """See `Probe`."""
        self._runner.prepare(allocators, demand_bytes)

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        """Time micro-batches in one child, or each in its own child if a process accepts one size only. See `Probe`."""
        if not self._settings[request.device].one_size or len(request.micro_batches) == 1:
            return self._time_in_one_child(request)
        times: list[StepTime] = []
        until, samples = time.monotonic() + request.limit_s, request.samples
        for size in request.micro_batches:
            limit_s = max(0.0, until - time.monotonic())
            changes = {"micro_batches": (size,), "rounds": 0, "samples": samples, "limit_s": limit_s}
            report = self._time_in_one_child(request.model_copy(update=changes))
            times.extend(report.times)
            if report.why_ended or time.monotonic() >= until:
                return TimingReport(times=tuple(times), why_ended=report.why_ended)
            samples = samples or (times[0].steps * size if times else None)
        return TimingReport(times=tuple(times))

    def _time_in_one_child(self, request: TimingRequest) -> TimingReport:
        times: list[StepTime] = []

        def listen(message: Message) -> None:
            with contextlib.suppress(ValidationError):  # a child with overwritten memory may send anything
                times.append(StepTime.model_validate(message.get("time")))

        self._runner.make_room(request.allocator, self._peak_bytes)
        on_host = request.device.startswith("cpu")
        limits = self._runner.limits(
            request.allocator,
            request.limit_s + TIMING_GRACE_S,
            allowed_bytes=request.allowed_bytes if on_host else None,
            host_fence=on_host,
        )
        order = self._order(request.device, "train")
        values = TimingArguments(setting=self._settings[request.device], request=request, order=order).model_dump(mode="json")
        ending = self._runner.run(time_sizes, values, request.allocator, limits, listen=listen)
        outcome = classify(ending, lambda value: Infrastructure(detail=""))
        return TimingReport(times=tuple(times), why_ended="" if ending.has_result else described(outcome))

    def rehearse(self, request: RehearsalRequest) -> Observation:
        """Run a complete plan."""
        plan = request.plan
        self._runner.make_room(plan.allocator, max(plan.predicted_peak_bytes, self._peak_bytes or 0))
        on_host = plan.device.startswith("cpu")
        limits = self._runner.limits(
            plan.allocator,
            request.limit_s + REHEARSAL_GRACE_S,
            allowed_bytes=request.allowed_bytes if on_host else None,
            host_fence=on_host and plan.num_workers == 0,
        )
        changes: dict[str, object] = {"intra_op_threads": plan.intra_op_threads, "interop_threads": plan.interop_threads}
        if request.keep_activations:
            changes["activation_checkpointing"] = OFF
        arguments = RehearsalArguments(
            setting=self._settings[plan.device].model_copy(update=changes),
            request=request,
            order=self._order(plan.device, "train"),
            eval_order=self._order(plan.device, "eval"),
        )
        start_s = time.monotonic()
        messages: list[Message] = []
        values = arguments.model_dump(mode="json")
        ending = self._runner.run(rehearse, values, plan.allocator, limits, listen=messages.append)
        memory_limits = self._memory_limits(plan.device, plan.allocator, request.budget_bytes, workers=plan.num_workers)
        outcome = classify(ending, lambda value: answers.rehearsal_outcome(value, ending, memory_limits, request))
        times = answers.rehearsal_times(ending.returned) if isinstance(outcome, Fits) else None
        evaluating = answers.evaluating(ending.returned, memory_limits, reported=bool(messages))
        isolation, wall_s = self._runner.isolation(ending, plan.device, plan.allocator), time.monotonic() - start_s
        return Observation(outcome=outcome, isolation=isolation, wall_s=wall_s, times=times, evaluating=evaluating)

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        """Try workers in a child of their own. See `Probe`."""
        self._runner.make_room(request.allocator, self._peak_bytes)
        limits = self._runner.limits(request.allocator, request.limit_s + MOST_FRESH_WORKER_S, host_fence=False)
        setting = self._settings[request.device]
        arguments = WorkersArguments(
            reference=setting.reference,
            seed=setting.seed,
            workers=request.workers,
            read_s=request.read_s,
            hang_s=request.hang_s,
        )
        ending = self._runner.run(examine_workers, arguments.model_dump(mode="json"), request.allocator, limits)
        return reported(ending, request.workers)

    def train_varied(self, request: HeapRequest) -> HeapReport:
        """Train with batches of changing shapes in a child of their own. See `Probe`."""
        self._runner.end_alternation()
        self._runner.make_room(request.allocator, None)
        readings: list[HeapReading] = []

        def listen(message: Message) -> None:
            with contextlib.suppress(ValidationError):
                readings.append(HeapReading.model_validate(message.get("reading")))

        order = self._order(request.device, "train")
        arguments = HeapArguments(setting=self._settings[request.device], request=request, order=order)
        limits = self._runner.limits(request.allocator, request.limit_s + VARIED_GRACE_S, allowed_bytes=request.allowed_bytes)
        ending = self._runner.run(train_varied, arguments.model_dump(mode="json"), request.allocator, limits, listen=listen)
        if ending.has_result:
            return HeapReport(readings=tuple(readings))
        outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
        if readings and isinstance(outcome, OutOfMemory | Suspect):
            peak_bytes = max(readings[-1].peak_bytes, limits.allowed_bytes or 0)
            readings.append(HeapReading(steps=readings[-1].steps + 1, peak_bytes=peak_bytes))
        return HeapReport(readings=tuple(readings), why_ended=described(outcome))

    def close(self) -> None:
        """Close the probe: none of its processes and files stay."""
        if not self._launchers_are_shared:
            self._launchers.close()
        else:
            self._runner.leave()

    def _order(self, device: str, mode: Mode) -> tuple[int, ...] | None:
        """Indices of the largest samples. None: unknown."""
        return self._examiner.orders.get((device, mode))

    def _memory_limits(self, device: str, allocator: str, budget_bytes: int, *, workers: int) -> answers.MemoryLimits:
        # Workers' batches come and go between two measurements of the child; the measurement of the group includes all of them.
        by_group = workers > 0 and isinstance(self._group, MemoryGroup) and not self._runner.has_neighbours
        return answers.MemoryLimits(
            device=device,
            budget_bytes=budget_bytes,
            host_budget_bytes=self._host_budget,
            group_base_bytes=self._runner.shared_bytes(allocator) if by_group else None,
        )


def child_probe(
    reference: TaskReference,
    options: Options,
    environment: Environment,
    budgets: Mapping[str, Budget],
    meter: GroupMeter,
    *,
    note: Callable[[str], None],
    deadline: Deadline | None = None,
    printed: Callable[[str], None] = lambda text: None,
    launchers: Launchers | None = None,
    neighbours: bool = False,
) -> ChildProbe:
    """Return the probe for the task behind `reference` on the devices of `budgets`. For the last three, see `ChildProbe`."""
    free = {f"{item.kind}:{item.index}": item.free_bytes for item in environment.accelerators}
    host = budgets.get("cpu") or host_budget_of(environment, options)
    settings = {
        device: ChildSetting(
            reference=reference,
            device=device,
            seed=options.seed,
            activation_checkpointing=options.activation_checkpointing,
            intra_op_threads=environment.optimal_threads,
            smallest_batch=SizeRule(multiple_of=options.multiple_of).smallest,
            multiple_of=options.multiple_of,
            accelerator_free_bytes=free.get(device),
        )
        for device in budgets
    }
    return ChildProbe(
        settings,
        meter,
        host_budget_bytes=host.budget_bytes,
        host_allowed_bytes=min(allowed_for(host.budget_bytes), host.limit_bytes - host.others_bytes),
        note=note,
        deadline=deadline,
        printed=printed,
        launchers=launchers,
        neighbours=neighbours,
    )


def _trained(messages: Sequence[Message]) -> JSON:
    """Return the answer of a training after which an evaluation ran. None: there is none."""
    return next((message["trained"] for message in messages if "trained" in message), None)


def _training_and_evaluation(
    ending: Ending, messages: Sequence[Message], limits: answers.MemoryLimits, request: ProbeRequest
) -> tuple[Outcome, Outcome | None]:
    """Return the outcome of a batch size, and that of the evaluation after it. None: no evaluation began."""
    trained = _trained(messages)
    if trained is None or ending.has_result or swapped(ending) is not None:
        # Where memory was swapped out, no half of the run fits: it is unknown which one was the cause.
        outcome = classify(ending, lambda value: answers.probe_outcome(value, ending, limits, request.batch))
    else:  # the training is complete, however the evaluation ended
        outcome = answers.probe_outcome(trained, ending, limits, request.batch)
    if trained is None or not isinstance(outcome, Fits):
        return outcome, None
    return outcome, classify(ending, lambda value: answers.evaluation_outcome(value, ending, limits, request.batch))
