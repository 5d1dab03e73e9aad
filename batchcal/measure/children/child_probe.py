"""ChildProbe: the probe that runs the user's own step in fenced children, one launcher per allocator policy."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, get_args

from pydantic import ValidationError

from batchcal.calibration.records.promises import PromiseCheck, PromiseName
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.schema import OFF, Budget, Isolation, Mode, Options
from batchcal.core.errors import GuardError, Interrupted
from batchcal.core.units import MIB, count_of
from batchcal.detect.environment import Environment
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.classify import classify, swapped
from batchcal.guard.ending import Ending
from batchcal.guard.job import Function
from batchcal.guard.launch import FunctionJob, Launcher
from batchcal.guard.limits.watchdog import GroupMeter, trip_distance
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Suspect
from batchcal.guard.run import ChildLimits, Listener, run
from batchcal.machine.allocator import maps_large_blocks
from batchcal.machine.cgroup import MemoryGroup
from batchcal.machine.meters import read_status
from batchcal.measure.budget import host_budget_of
from batchcal.measure.children import answers
from batchcal.measure.children.examine_job import Curve, ExamineArguments, examine
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
from batchcal.measure.children.scout_job import ScoutArguments, scout
from batchcal.measure.children.setting import SMALLEST, ChildSetting
from batchcal.measure.deadline import Deadline
from batchcal.measure.heap import counting
from batchcal.measure.heap.handles_job import HandlesAnswer, HandlesArguments, count_lost_blocks
from batchcal.measure.heap.trial import HeapReading, HeapReport, HeapRequest
from batchcal.measure.heap.varied_job import HeapArguments, train_varied
from batchcal.measure.inside.promise_job import PromiseAnswer, PromiseArguments, check_promises
from batchcal.measure.outcomes import allowed_for, described
from batchcal.measure.race.timing_job import TimingArguments, time_sizes
from batchcal.measure.rehearsal.job import RehearsalArguments, rehearse
from batchcal.measure.workers.job import WorkersArguments, examine_workers
from batchcal.measure.workers.report import reported
from batchcal.measure.workers.trial import MOST_FRESH_WORKER_S, WorkersReport, WorkersRequest
from batchcal.workload.spec.reference import TaskReference

UNSHARED_BYTES: Final = 16 * MIB
"""Memory that a forked child and its zygote hold twice after the child wrote to shared pages (4 to 12 MiB with gc.freeze)."""
ZYGOTE_BYTES: Final = 240 * MIB
"""Anonymous memory of a zygote: 219 to 229 MiB with torch 2.13 on CPU, mostly written while its libraries are linked."""
LIBRARY_BYTES: Final = 384 * MIB
"""Pages of torch's libraries that are in use. If zygotes leave no room for them, they are evicted and read again: in 1 GiB, four
zygotes at once took longer than one after another."""
ROOM_FACTOR: Final = 2.0
"""Multiple of the expected peak of a child that must be free if the processes of other policies stay. The first prediction can be
too low by a third (681 MiB for 828, a U-Net)."""
TIMING_GRACE_S: Final = 10.0
"""Extra time for a timing: a size that has started is finished."""
REHEARSAL_GRACE_S: Final = 30.0
"""Extra time for a rehearsal: no limit cuts groups and evaluations short."""
SCOUT_GRACE_S: Final = 5.0
"""Extra time to finish a size that has started."""
VARIED_GRACE_S: Final = 30.0
"""Extra time for the step of the largest batch, which comes last."""
LOAD_LIMIT_S: Final = 300.0
WARM_UP_LIMIT_S: Final = 900.0
"""torch.compile takes minutes for large models. The deadline of the command ends anything longer."""
CURVE_LIMIT_S: Final = 20.0
CURVE_SHARE: Final = 0.3
"""Share of the remaining time for a static curve. After that, a simpler curve replaces it."""
CURVES: Final[tuple[Curve, ...]] = ("traced", "profiled", "assumed")
PROMISE_SAMPLES: Final = (64, 2)
"""Number of samples to choose batches from. The second value is for a single batch, which is divided into 1 + 1."""
PROMISES_LIMIT_S: Final = 10.0
PROMISES_SHARE: Final = 0.1
"""Share of the remaining time. Checks end by themselves after half a second, unless a first batch takes longer."""
PROMISES_LEAST_S: Final = 4.0
"""Minimum time, at most half of the remaining time. On two cores with seven busy processes, the check of a small autoencoder was
stopped after 1 s, and a batch with a sum as its loss was divided."""

OUTPUT_SHOWN: Final = 8_000
"""Number of characters of the task's output to show: one or two screens."""


def promises_limit_s(left_s: float) -> float:
    """Return the seconds that the check of promises may take, if `left_s` seconds remain in total."""
    return min(PROMISES_LIMIT_S, max(left_s * PROMISES_SHARE, min(PROMISES_LEAST_S, left_s / 2)))


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
        self._neighbours = neighbours
        self._printed = printed
        self._settings = dict(settings)
        self._group = group
        self._host_budget = host_budget_bytes
        self._host_allowed = allowed_for(host_budget_bytes) if host_allowed_bytes is None else host_allowed_bytes
        self._deadline = deadline
        self._phase_s = {"load": LOAD_LIMIT_S, "read": LOAD_LIMIT_S, "warm-up": WARM_UP_LIMIT_S}
        variables = os.environ if environ is None else environ
        self._launchers_are_shared = launchers is not None
        left_s = (lambda: math.inf) if deadline is None else deadline.left_s
        self._launchers = launchers or Launchers(variables, note=note, spawn_only=isolation == "spawn", left_s=left_s)
        self._examined: dict[str, Examination] = {}
        """Examination by device, under any policy."""
        self._orders: dict[tuple[str, Mode], tuple[int, ...]] = {}
        """Indices of the largest samples by device and mode."""
        self._lost_blocks: dict[str, int | None] = {}
        """Lost blocks by policy, see `_count_lost_blocks`."""
        self._largest: int | None = None
        """Largest batch size that the task accepts. None: unknown."""
        self._kept_memory: answers.KeptMemory | None = None
        """Memory kept by the dataset in the last examination."""
        self._peak_bytes: int | None = None
        """Largest peak of a batch that fitted. None: none has."""
        self._last_allocator: str | None = None
        self._alternating: frozenset[str] = frozenset()
        """Policies that are timed alternately. Their launchers stay and do not start again each time."""
        self._expected: tuple[tuple[str, ...], int] = ((), 0)
        """Policies that will be timed alternately after the next examination, and the memory of their runs, bytes."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Load the task once in a child and return its facts, its static shapes, and the memory of a tiny step. See `Probe`."""
        known = self._examined.get(device)
        self._make_room(allocator, None if known is None else known.base_bytes)
        arguments = ExamineArguments(
            setting=self._settings[device],
            budget_bytes=budget_bytes,
            limit_s=limit_s,
            known=known,
            order=self._orders.get((device, "train")),
        )
        ending = self._examination(arguments, allocator)
        if not ending.has_result:
            raise answers.failure(ending, self._host_budget, self._kept_memory, torch_bytes=self._shared_bytes(allocator))
        value = ending.returned if isinstance(ending.returned, dict) else {}
        try:
            examination = Examination.model_validate(value.get("examination"))
        except ValidationError as error:
            detail = count_of(error.error_count(), "invalid field")
            raise GuardError("the examination of the task returned no usable answer", known=detail) from error
        if not self._examined and ending.output.strip():
            self._printed(ending.output.strip()[-OUTPUT_SHOWN:])
        if device not in self._examined:
            examination = examination.model_copy(update={"promises": self._promises(device, allocator)})
            self._examined[device] = examination
            for mode in get_args(Mode):
                order = value.get(mode)
                if isinstance(order, list):
                    self._orders[device, mode] = tuple(index for index in order if isinstance(index, int))
        return examination

    def _examination(self, arguments: ExamineArguments, allocator: str) -> Ending:
        """Examine the task and return how the child ended. Repeat with a simpler curve if the curve failed, and with one sample
        if two did not fit."""
        ending = self._examine_once(arguments, allocator)
        setting = arguments.setting
        if ran_out(ending) and ending.phase == "warm-up" and setting.smallest_batch == 2 and setting.multiple_of == 1:
            single = setting.model_copy(update={"smallest_batch": 1})
            retry = self._examine_once(arguments.model_copy(update={"setting": single}), allocator)
            if retry.has_result or retry.phase == "measure":
                arguments, ending = arguments.model_copy(update={"setting": single}), retry
                self._settings[single.device] = single
        for curve in CURVES[1:]:
            # After the first real steps: the model without memory or the profiler crashed, hung, or needed too much itself.
            if ending.has_result or ending.phase != "measure" or ending.limit_name:
                break
            ending = self._examine_once(arguments.model_copy(update={"curve": curve}), allocator)
        return ending

    def _examine_once(self, arguments: ExamineArguments, allocator: str) -> Ending:
        left_s = math.inf if self._deadline is None else self._deadline.left_s()
        expected, demand_bytes = self._expected
        self._expected = ((), 0)
        limits = ChildLimits(
            allowed_bytes=self._most_allowed(allocator),
            phase_s={**self._phase_s, "measure": min(CURVE_LIMIT_S, left_s * CURVE_SHARE)},
            neighbours=self._has_neighbours() or bool(expected),
        )

        def listen(message: Message) -> None:
            if message.get("timed") is True and self._has_room_for(expected, demand_bytes):
                self._launchers.begin(expected)
            with contextlib.suppress(ValidationError):
                self._kept_memory = answers.KeptMemory.model_validate(message)

        self._kept_memory = None
        return self._run(examine, arguments.model_dump(mode="json"), allocator, limits, listen=listen)

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        """Try all sizes in one child. See `Probe`."""
        self._make_room(allocator, None)
        ran: list[int] = []

        def listen(message: Message) -> None:
            size = message.get("ran")
            if isinstance(size, int):
                ran.append(size)

        arguments = ScoutArguments(setting=self._settings[device], sizes=tuple(sizes), limit_s=limit_s)
        limits = ChildLimits(
            allowed_bytes=self._most_allowed(allocator),
            phase_s={**self._phase_s, "measure": limit_s + SCOUT_GRACE_S},
            neighbours=self._has_neighbours(),
        )
        values = arguments.model_dump(mode="json")
        self._run(scout, values, allocator, limits, listen=listen)
        return tuple(ran)

    def set_size_rule(self, rule: SizeRule) -> None:
        """See `Probe`."""
        self._lost_blocks.clear()  # they may have been counted with a size that the task refuses
        self._largest = rule.most
        for device, setting in self._settings.items():
            # One sample stays the tiny batch if two do not fit.
            smallest = rule.smallest if rule.smallest > SMALLEST else min(setting.smallest_batch, SMALLEST)
            changes = {"smallest_batch": smallest, "multiple_of": rule.multiple_of, "one_size": rule.one_size}
            self._settings[device] = setting.model_copy(update=changes)

    def _promises(self, device: str, allocator: str) -> tuple[PromiseCheck, ...]:
        """Check the promises of the task in a child of its own: a failure does not affect the examination. Repeat with two
        samples if eight need more memory than there is."""
        promises: tuple[PromiseCheck, ...] = ()
        for samples in PROMISE_SAMPLES:
            arguments = PromiseArguments(setting=self._settings[device], samples=samples)
            promises, ran_short = self._promises_of(arguments, allocator)
            if not ran_short:
                break
        return promises

    def _promises_of(self, arguments: PromiseArguments, allocator: str) -> tuple[tuple[PromiseCheck, ...], bool]:
        """Return the checks of one child, including those reported before it died, and True if it needed too much memory."""
        reported: list[PromiseCheck] = []

        def listen(message: Message) -> None:
            with contextlib.suppress(ValidationError):
                reported.append(PromiseCheck.model_validate(message.get("promise")))

        left_s = math.inf if self._deadline is None else self._deadline.left_s()
        limits = ChildLimits(
            allowed_bytes=self._most_allowed(allocator),
            phase_s={**self._phase_s, "measure": promises_limit_s(left_s)},
            neighbours=self._has_neighbours(),
        )
        values = arguments.model_dump(mode="json")
        ending = self._run(check_promises, values, allocator, limits, listen=listen)
        with contextlib.suppress(ValidationError):
            return PromiseAnswer.model_validate(ending.returned).promises, False
        outcome = classify(ending, lambda value: Infrastructure(detail="no usable answer"))
        names: tuple[PromiseName, ...] = ("mean-over-weight", "batch-statistics")
        missing = [name for name in names if name not in {check.promise for check in reported}]
        unchecked = (PromiseCheck(promise=name, result="not-checked", cause=described(outcome)) for name in missing)
        return (*reported, *unchecked), isinstance(outcome, OutOfMemory)

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        """See `Probe`."""
        return self.measure(request) if isinstance(request, ProbeRequest) else self.rehearse(request)

    def measure(self, request: ProbeRequest) -> Observation:
        """Run steps at one size."""
        self._alternating = frozenset()
        self._launchers.drop_starting()  # the race that they were for is over, or was not run
        self._make_room(request.allocator, request.predicted_bytes)
        setting = self._settings[request.device].under(request.setup)
        if request.one_size:
            setting = setting.model_copy(update={"one_size": True})
        loses_blocks = bool(setting.workers) and request.device == "cpu" and maps_large_blocks(request.allocator)
        if loses_blocks:
            setting = setting.model_copy(update={"lost_blocks": self._count_lost_blocks(setting, request.allocator)})
        accelerated = not request.device.startswith("cpu")
        allowed = self._most_allowed(request.allocator)
        if not accelerated:
            allowed = min(request.allowed_bytes, allowed)
        arguments = ProbeArguments(
            setting=setting,
            request=request,
            order=self._orders.get((request.device, request.mode)),
            train_order=self._orders.get((request.device, "train")),
            eval_order=self._orders.get((request.device, "eval")),
        )
        deadline = max(request.deadline_s or 600.0, 5.0)
        limits = ChildLimits(
            allowed_bytes=allowed,
            phase_s={**self._phase_s, "measure": deadline},
            host_fence=not accelerated and setting.workers == 0,
            neighbours=self._has_neighbours(),
        )
        start_s = time.monotonic()
        messages: list[Message] = []
        memory_limits = self._memory_limits(request.device, request.allocator, request.budget_bytes, workers=setting.workers)
        try:
            ending = self._run(probe, arguments.model_dump(mode="json"), request.allocator, limits, listen=messages.append)
        except Interrupted as error:
            if (trained := _trained(messages)) is None:
                raise
            outcome = answers.probe_outcome(trained, Ending(), memory_limits, request.batch)
            isolation = self._isolation(Ending(), request.device, request.allocator)
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
        isolation = self._isolation(ending, request.device, request.allocator)
        notes = answers.notes(ending.returned if ending.has_result else _trained(messages))
        if loses_blocks and setting.lost_blocks is None:
            notes += (counting.UNKNOWN,)
        wall_s = time.monotonic() - start_s
        return Observation(outcome=outcome, isolation=isolation, wall_s=wall_s, notes=notes, evaluation=evaluation)

    def _isolation(self, ending: Ending, device: str, allocator: str) -> Isolation:
        layers = ("prediction", *ending.layers, *(("accelerator-fraction",) if device.startswith("cuda") else ()))
        launcher = self._launchers.running_for(allocator)
        return Isolation(launcher="zygote" if launcher is None else launcher.name, fence=layers, missing=ending.missing)

    def _count_lost_blocks(self, setting: ChildSetting, allocator: str) -> int | None:
        """Number of blocks of a step that are lost to handles of workers' batches, counted once. None: unknown."""
        if setting.one_size:
            return None
        if allocator not in self._lost_blocks:
            self._lost_blocks[allocator] = self._lost_blocks_of(setting, allocator)
        return self._lost_blocks[allocator]

    def _lost_blocks_of(self, setting: ChildSetting, allocator: str) -> int | None:
        examined = self._examined.get(setting.device)
        batch = counting.counting_batch(
            () if examined is None else examined.shapes["train"],
            smallest=setting.smallest_batch,
            multiple_of=setting.multiple_of,
            most=self._largest,
        )
        if self._largest is not None and batch > self._largest:
            return None
        left_s = math.inf if self._deadline is None else self._deadline.left_s()
        limit_s = min(counting.LIMIT_S, left_s * counting.SHARE_OF_TIME)
        order = self._orders.get((setting.device, "train"))
        arguments = HandlesArguments(setting=setting, batch=batch, limit_s=limit_s, order=order)
        limits = ChildLimits(
            allowed_bytes=self._most_allowed(allocator),
            phase_s={**self._phase_s, "measure": limit_s + SCOUT_GRACE_S},
            host_fence=False,
            neighbours=self._has_neighbours(),
        )
        ending = self._run(count_lost_blocks, arguments.model_dump(mode="json"), allocator, limits)
        try:
            return HandlesAnswer.model_validate(ending.returned).lost_blocks
        except ValidationError:
            return None

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Start launchers during the next examination if there is room for all of them. See `Probe`."""
        self._expected = tuple(allocators), demand_bytes

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Start a launcher for each of `allocators` if there is room for all of them. See `Probe`."""
        self._alternating = frozenset()
        if self._has_room_for(allocators, demand_bytes):
            self._alternating = frozenset(allocators)
            self._launchers.start_all(allocators)

    def _has_room_for(self, allocators: Sequence[str], demand_bytes: int) -> bool:
        """True if memory has room for a launcher of each of `allocators`, and for a run of `demand_bytes`."""
        free = self._group.limit_bytes - self._group.hard_bytes() - self._launchers.missing(allocators) * ZYGOTE_BYTES
        return free >= demand_bytes + LIBRARY_BYTES

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

        self._make_room(request.allocator, self._peak_bytes)
        accelerated = not request.device.startswith("cpu")
        allowed = self._most_allowed(request.allocator)
        limits = ChildLimits(
            allowed_bytes=allowed if accelerated else min(request.allowed_bytes, allowed),
            phase_s={**self._phase_s, "measure": request.limit_s + TIMING_GRACE_S},
            host_fence=not accelerated,
            neighbours=self._has_neighbours(),
        )
        order = self._orders.get((request.device, "train"))
        values = TimingArguments(setting=self._settings[request.device], request=request, order=order).model_dump(mode="json")
        ending = self._run(time_sizes, values, request.allocator, limits, listen=listen)
        outcome = classify(ending, lambda value: Infrastructure(detail=""))
        return TimingReport(times=tuple(times), why_ended="" if ending.has_result else described(outcome))

    def rehearse(self, request: RehearsalRequest) -> Observation:
        """Run a complete plan."""
        plan = request.plan
        self._make_room(plan.allocator, max(plan.predicted_peak_bytes, self._peak_bytes or 0))
        accelerated = not plan.device.startswith("cpu")
        allowed = self._most_allowed(plan.allocator)
        limits = ChildLimits(
            allowed_bytes=allowed if accelerated else min(request.allowed_bytes, allowed),
            phase_s={**self._phase_s, "measure": request.limit_s + REHEARSAL_GRACE_S},
            host_fence=not accelerated and plan.num_workers == 0,
            neighbours=self._has_neighbours(),
        )
        changes: dict[str, object] = {"intra_op_threads": plan.intra_op_threads, "interop_threads": plan.interop_threads}
        if request.keep_activations:
            changes["activation_checkpointing"] = OFF
        arguments = RehearsalArguments(
            setting=self._settings[plan.device].model_copy(update=changes),
            request=request,
            order=self._orders.get((plan.device, "train")),
            eval_order=self._orders.get((plan.device, "eval")),
        )
        start_s = time.monotonic()
        messages: list[Message] = []
        values = arguments.model_dump(mode="json")
        ending = self._run(rehearse, values, plan.allocator, limits, listen=messages.append)
        memory_limits = self._memory_limits(plan.device, plan.allocator, request.budget_bytes, workers=plan.num_workers)
        outcome = classify(ending, lambda value: answers.rehearsal_outcome(value, ending, memory_limits, request))
        times = answers.rehearsal_times(ending.returned) if isinstance(outcome, Fits) else None
        evaluating = answers.evaluating(ending.returned, memory_limits, reported=bool(messages))
        isolation, wall_s = self._isolation(ending, plan.device, plan.allocator), time.monotonic() - start_s
        return Observation(outcome=outcome, isolation=isolation, wall_s=wall_s, times=times, evaluating=evaluating)

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        """Try workers in a child of their own. See `Probe`."""
        self._make_room(request.allocator, self._peak_bytes)
        limits = ChildLimits(
            allowed_bytes=self._most_allowed(request.allocator),
            phase_s={**self._phase_s, "measure": request.limit_s + MOST_FRESH_WORKER_S},
            host_fence=False,
            neighbours=self._has_neighbours(),
        )
        setting = self._settings[request.device]
        arguments = WorkersArguments(
            reference=setting.reference,
            seed=setting.seed,
            workers=request.workers,
            read_s=request.read_s,
            hang_s=request.hang_s,
        )
        ending = self._run(examine_workers, arguments.model_dump(mode="json"), request.allocator, limits)
        return reported(ending, request.workers)

    def train_varied(self, request: HeapRequest) -> HeapReport:
        """Train with batches of changing shapes in a child of their own. See `Probe`."""
        self._alternating = frozenset()
        self._make_room(request.allocator, None)
        readings: list[HeapReading] = []

        def listen(message: Message) -> None:
            with contextlib.suppress(ValidationError):
                readings.append(HeapReading.model_validate(message.get("reading")))

        order = self._orders.get((request.device, "train"))
        arguments = HeapArguments(setting=self._settings[request.device], request=request, order=order)
        allowed = min(request.allowed_bytes, self._most_allowed(request.allocator))
        limits = ChildLimits(
            allowed_bytes=allowed,
            phase_s={**self._phase_s, "measure": request.limit_s + VARIED_GRACE_S},
            neighbours=self._has_neighbours(),
        )
        ending = self._run(train_varied, arguments.model_dump(mode="json"), request.allocator, limits, listen=listen)
        if ending.has_result:
            return HeapReport(readings=tuple(readings))
        outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
        if readings and isinstance(outcome, OutOfMemory | Suspect):
            peak_bytes = max(readings[-1].peak_bytes, allowed)
            readings.append(HeapReading(steps=readings[-1].steps + 1, peak_bytes=peak_bytes))
        return HeapReport(readings=tuple(readings), why_ended=described(outcome))

    def close(self) -> None:
        """Close the probe: none of its processes and files stay."""
        if not self._launchers_are_shared:
            self._launchers.close()
        elif self._last_allocator is not None:
            self._launchers.keep_only(self._last_allocator)

    def _run(
        self,
        function: Function,
        arguments: dict[str, JSON],
        allocator: str,
        limits: ChildLimits,
        *,
        listen: Listener | None = None,
    ) -> Ending:
        setting = next(iter(self._settings.values()))
        job = FunctionJob(function, arguments, setting.reference.directory, self._launchers.environment(allocator))
        if self._deadline is not None:
            left_s, name = self._deadline.left_s(), self._deadline.name
            if left_s <= 0:
                return Ending(killed_for="deadline", kill_reason=f"{name} ended before the process started", limit_name=name)
            limits = replace(limits, total_s=left_s, total_name=name)
        limits = replace(limits, shared_bytes=self._shared_bytes(allocator))
        try:
            return run(job, self._launcher(allocator), self._group, limits, listen)
        except GuardError:
            self._launchers.drop(allocator)  # the zygote died: start a new one, once; the caller repeats the lost run
            return run(job, self._launcher(allocator), self._group, limits, listen)

    def _launcher(self, allocator: str) -> Launcher:
        self._last_allocator = allocator
        return self._launchers.get(allocator)

    def _make_room(self, allocator: str, demand_bytes: int | None) -> None:
        """Close the launchers of other policies, unless memory has room for them beside a child of `demand_bytes`. Each takes
        seconds to start again. None: the demand is unknown, so they are closed."""
        free = self._group.limit_bytes - self._group.hard_bytes() - ZYGOTE_BYTES
        has_room = demand_bytes is not None and free >= demand_bytes * ROOM_FACTOR + LIBRARY_BYTES
        if not has_room and allocator not in self._alternating:
            self._launchers.keep_only(allocator)

    def _has_neighbours(self) -> bool:
        """True if other processes start or end in the memory group while a child runs."""
        return self._neighbours or self._launchers.are_starting

    def _memory_limits(self, device: str, allocator: str, budget_bytes: int, *, workers: int) -> answers.MemoryLimits:
        # Workers' batches come and go between two measurements of the child; the measurement of the group includes all of them.
        by_group = workers > 0 and isinstance(self._group, MemoryGroup) and not self._has_neighbours()
        return answers.MemoryLimits(
            device=device,
            budget_bytes=budget_bytes,
            host_budget_bytes=self._host_budget,
            group_base_bytes=self._shared_bytes(allocator) if by_group else None,
        )

    def _most_allowed(self, allocator: str) -> int:
        """Memory of a child (as in a training) at which the group is as full as the fence allows, or the memory limit of the user
        is reached, bytes."""
        limit, shared = self._group.limit_bytes, self._shared_bytes(allocator)
        room = limit - trip_distance(limit, armed=True) - self._group.hard_bytes()
        return max(0, min(room + shared - (UNSHARED_BYTES if shared else 0), self._host_allowed))

    def _shared_bytes(self, allocator: str) -> int:
        """Memory that a child shares with the zygote that it was forked from, bytes. A training holds it alone."""
        if self._deadline is not None and self._deadline.left_s() <= 0:
            return 0  # no child is started, so it needs no launcher
        pid = self._launcher(allocator).overhead_pid
        status = None if pid is None else read_status(pid)
        return 0 if status is None else status.anonymous_bytes


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


def ran_out(ending: Ending) -> bool:
    """True if the child ran out of memory."""
    return isinstance(classify(ending, lambda value: Infrastructure(detail="")), OutOfMemory)
