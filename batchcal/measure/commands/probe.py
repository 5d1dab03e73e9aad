"""CommandProbe: the probe of a training that is a command. Each measurement starts the command once."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Final

from batchcal.calibration.records.command import CommandRecord
from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.calibration.schema import Budget, Options
from batchcal.core.errors import UsageError
from batchcal.detect.environment import Environment
from batchcal.guard.commands.command import CommandJob, CommandLauncher, run_command
from batchcal.guard.limits.watchdog import GroupMeter, trip_distance
from batchcal.guard.outcome import Fits, UserCodeFailed
from batchcal.guard.run import ChildLimits
from batchcal.machine.allocator import AUTO, resolve
from batchcal.measure.budget import host_budget_of
from batchcal.measure.children.probe import (
    Examination,
    Observation,
    PlanTimes,
    ProbeRequest,
    RehearsalRequest,
    TimingReport,
    TimingRequest,
)
from batchcal.measure.commands.command_run import CommandRun, CommandSettings
from batchcal.measure.commands.environment import environment_of
from batchcal.measure.commands.errors import IGNORED, error_of
from batchcal.measure.commands.outcomes import outcome_of
from batchcal.measure.commands.reports import LEAST_STEPS, Reports
from batchcal.measure.deadline import Deadline
from batchcal.measure.heap.trial import HeapReport, HeapRequest
from batchcal.measure.outcomes import allowed_for, described
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest
from batchcal.values.command_observation import CommandObservation
from batchcal.workload.command.template import ACCUMULATION_STEPS, BATCH_SIZE, EFFECTIVE_BATCH, Template
from batchcal.workload.facts import TaskFacts
from batchcal.workload.spec.reference import TaskReference

FIRST_SIZE: Final = 8
"""Batch of the first run: most commands accept it, and BatchNorm trains with it."""
SECOND_FACTOR: Final = 4
"""Second size relative to the first. Two sizes give the slope of the memory."""
FIRST_START_LIMIT_S: Final = 900.0
"""Time until the second optimizer step of the first run: it may download, tokenise or compile."""
LATER_STARTS: Final = 3.0
"""Later runs may take this multiple of the first one until their second step, and `START_GRACE_S` more."""
START_GRACE_S: Final = 30.0
ROWS_TOLERANCE: Final = 0.02
"""Share by which the rows of a step may differ from those of the command line: a short last batch."""
UPDATE_S: Final = 1e-9
"""Time of an optimizer step in a `StepTime`: that of a command is part of the time of its micro-batch."""


class CommandProbe:
    """Measures by starting the command. All sizes are those of one process."""

    def __init__(
        self,
        template: Template,
        directory: str,
        group: GroupMeter,
        *,
        host_budget_bytes: int,
        host_allowed_bytes: int,
        threads: int,
        steps: int,
        deadline: Deadline | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        host_allowed_bytes: host memory that all processes together may never exceed.
        threads: intra-op threads of a run that does not choose them.
        steps: optimizer steps of each run.
        """
        self._template = template
        self._directory = directory
        self._group = group
        self._host_budget = host_budget_bytes
        self._host_allowed = host_allowed_bytes
        self._threads = threads
        self._steps = max(steps, LEAST_STEPS + 1)
        self._deadline = deadline
        self._environ = dict(os.environ if environ is None else environ)
        self._launcher = CommandLauncher()
        self._rule = SizeRule()
        self._examination: Examination | None = None
        accumulates = {ACCUMULATION_STEPS, EFFECTIVE_BATCH} & set(template.placeholders)
        self._accumulation_steps = 2 if accumulates else 1
        """Micro-batches of a probe. Two, so that the gradients of the first are in memory during the second, as in a plan."""
        self._train_rows: int | None = None
        """Samples of an epoch. None: unknown, or before the first run."""
        self._world_size = 1
        """Processes that train together. Known after the first run."""
        self._start_s: float | None = None
        """Seconds until the second step of the slowest run so far."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Run the command at two small sizes.

        Raises:
            UsageError: its batch size does not follow the placeholder, or it cannot be observed.
            UserCodeError: it failed.
            NothingFits: the smallest size does not fit.
        """
        if self._examination is not None:
            return self._examination
        sizes = self._first_sizes()
        runs: dict[int, CommandRun] = {}
        for size in sizes:
            run = self._run(self._settings(allocator, size), budget_bytes, allowed_bytes=allowed_for(budget_bytes))
            if isinstance(run.outcome, Fits):
                runs[size] = run
            elif not runs:
                raise error_of(run, size, self._host_budget)
            else:
                break
        self._examination = self._examined(runs)
        return self._examination

    def observe_once(self, allocator: str) -> CommandObservation:
        """Run the command once as it is.

        Raises:
            UsageError, UserCodeError, NothingFits: as for `examine`.
        """
        name = "default" if allocator == AUTO else allocator
        budget_bytes = self._host_budget
        run = self._run(self._settings(name, 1), budget_bytes, allowed_bytes=allowed_for(budget_bytes))
        outcome, ranks = run.outcome, list(run.reports.trained.values())
        if not isinstance(outcome, Fits):
            raise error_of(run, None, self._host_budget)
        rows = run.reports.rows_per_step
        return CommandObservation(
            words=self._template.masked,
            steps=run.reports.steps,
            micro_batches=max((report.micro_batches for report in ranks), default=1),
            world_size=run.reports.world_size,
            rows=rows,
            step_s=outcome.step_s,
            samples_per_s=None if rows is None else outcome.samples_per_s,
            wait_share=max((report.wait_share for report in ranks), default=0.0),
            loader_workers=max((count for report in ranks for _, count in report.workers), default=0),
            threads=max((report.threads for report in ranks), default=0),
            allocator=name,
            peak_bytes=outcome.peak.demand_bytes,
            budget_bytes=budget_bytes,
        )

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        """See `Probe`."""
        if isinstance(request, ProbeRequest):
            settings = self._settings(request.allocator, request.batch)
            run = self._run(settings, request.budget_bytes, allowed_bytes=request.allowed_bytes)
            return Observation(outcome=run.outcome, isolation=run.isolation, wall_s=run.wall_s)
        plan = request.plan
        settings = CommandSettings(
            allocator=plan.allocator,
            batch=plan.micro_batch,
            accumulation_steps=plan.accumulation_steps,
            eval_batch=plan.eval_batch,
            num_workers=plan.num_workers,
            threads=plan.intra_op_threads,
            world_size=plan.world_size,
        )
        run = self._run(settings, request.budget_bytes, allowed_bytes=request.allowed_bytes)
        times: PlanTimes | None = None
        if isinstance(run.outcome, Fits):
            waits = [report.wait_share for report in run.reports.trained.values()]
            times = PlanTimes(wait_share=max(waits, default=0.0), eval_samples_per_s=())
        return Observation(outcome=run.outcome, isolation=run.isolation, wall_s=run.wall_s, times=times)

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        """Time the largest size only: each one costs a start of the command."""
        size = request.micro_batches[-1]
        threads = request.threads[-1] if request.threads else self._threads
        settings = self._settings(request.allocator, size, threads=threads)
        run = self._run(settings, request.allowed_bytes, allowed_bytes=request.allowed_bytes)
        if not isinstance(run.outcome, Fits):
            return TimingReport(times=(), why_ended=described(run.outcome))
        fetch_s = max((report.wait_share for report in run.reports.trained.values()), default=0.0) * run.outcome.step_s
        time_of_size = StepTime(
            micro_batch=size,
            threads=threads,
            step_s=size / run.outcome.samples_per_s,
            fetch_s=fetch_s,
            fetch_cpu_s=0.0,
            update_s=UPDATE_S,
            steps=run.outcome.steps,
        )
        return TimingReport(times=(time_of_size,))

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        """Return no size: each one would cost a start of the command."""
        return ()

    def set_size_rule(self, rule: SizeRule) -> None:
        """See `Probe`."""
        self._rule = rule

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Do nothing: a command needs no launcher."""

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Do nothing: a command needs no launcher."""

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        """Return the requested workers: the command starts them itself."""
        check = PromiseCheck(promise="workers-same-samples", result="not-checked", cause="the command starts its workers itself")
        return WorkersReport(check=check, workers=LoaderWorkers(start=None, why_start=""))

    def train_varied(self, request: HeapRequest) -> HeapReport:
        """Return no readings: the command chooses its batches."""
        return HeapReport(readings=(), why_ended="the command chooses its batches")

    def close(self) -> None:
        """End all processes of the command."""
        self._launcher.close()

    def _first_sizes(self) -> tuple[int, int]:
        multiple = self._rule.multiple_of
        first = max(-(-FIRST_SIZE // multiple) * multiple, self._rule.least)
        first = min(first, self._rule.most or first)
        return first, min(first * SECOND_FACTOR, self._rule.most or first * SECOND_FACTOR)

    def _settings(self, allocator: str, batch: int, *, threads: int | None = None) -> CommandSettings:
        return CommandSettings(
            allocator=allocator,
            batch=batch,
            accumulation_steps=self._accumulation_steps,
            eval_batch=batch,
            num_workers=0,
            threads=self._threads if threads is None else threads,
            world_size=self._world_size,
        )

    def _run(self, settings: CommandSettings, budget_bytes: int, *, allowed_bytes: int) -> CommandRun:
        """Start the command once, and stop it after its steps."""
        reports, start_s = Reports(), time.monotonic()
        scratch = self._launcher.make_scratch()
        command = self._template.filled(settings.values(str(scratch)))
        environment = environment_of(
            self._environ,
            resolve(settings.allocator),
            scratch=str(scratch),
            threads=settings.threads,
            steps=self._steps_of(settings),
        )
        job = CommandJob(command.argv, environment | command.variables(), self._directory)
        limits = self._limits(allowed_bytes)
        try:
            ending = run_command(job, self._launcher, self._group, limits, reports.add, is_complete=lambda: reports.is_complete)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        wall_s = time.monotonic() - start_s
        declared = settings.batch * settings.accumulation_steps * reports.world_size
        outcome = outcome_of(ending, reports, budget_bytes=budget_bytes, declared_batch=declared)
        if isinstance(outcome, Fits) and any(report.accelerator for report in reports.trained.values()):
            raise UsageError(
                "the command trains on an accelerator, and batchcal measures commands on the CPU only",
                known="the memory of an accelerator is measured for tasks",
                try_="a task: batchcal calibrate train.py:task; or CUDA_VISIBLE_DEVICES= before the command",
            )
        if isinstance(outcome, Fits) and (problem := self._mismatch(settings, reports)):
            outcome = UserCodeFailed(phase="measure", error=problem, output=ending.output[-1000:])
        if isinstance(outcome, Fits):
            self._world_size, self._train_rows = reports.world_size, reports.train_rows
            steps_s = outcome.step_s * max(0, outcome.steps - 2)
            self._start_s = max(self._start_s or 0.0, wall_s - steps_s)
        return CommandRun(outcome, reports, ending, wall_s)

    def _steps_of(self, settings: CommandSettings) -> int:
        """Return the optimizer steps of a run: no more than an epoch has, so that the command does not end by itself."""
        if self._train_rows is None:
            return self._steps
        per_step = settings.batch * settings.accumulation_steps * self._world_size
        return max(LEAST_STEPS, min(self._steps, self._train_rows // per_step))

    def _limits(self, allowed_bytes: int) -> ChildLimits:
        limit = self._group.limit_bytes
        room = limit - trip_distance(limit, armed=True) - self._group.hard_bytes()
        start_s = FIRST_START_LIMIT_S if self._start_s is None else self._start_s * LATER_STARTS + START_GRACE_S
        left_s = math.inf if self._deadline is None else self._deadline.left_s()
        return ChildLimits(
            allowed_bytes=max(0, min(allowed_bytes, room, self._host_allowed)),
            phase_s={"start": start_s, "load": start_s, "measure": FIRST_START_LIMIT_S},
            processes=self._world_size,
            total_s=None if left_s == math.inf else left_s,
            total_name="" if self._deadline is None else self._deadline.name,
        )

    def _mismatch(self, settings: CommandSettings, reports: Reports) -> str:
        """Return the difference between a run and its settings: the command trained with another batch. Empty: none."""
        if BATCH_SIZE not in self._template.placeholders:
            return ""
        rows, expected = reports.rows_per_step, settings.batch * settings.accumulation_steps * reports.world_size
        if rows is not None and abs(rows - expected) > ROWS_TOLERANCE * expected:
            factors = [f"{{batch_size}} = {settings.batch}"]
            factors += [f"{settings.accumulation_steps} micro-batches"] if settings.accumulation_steps > 1 else []
            factors += [f"{reports.world_size} processes"] if reports.world_size > 1 else []
            return f"the command trained with {rows:.0f} rows{IGNORED}{expected} ({', '.join(factors)})"
        backwards = max((report.micro_batches for report in reports.trained.values()), default=1)
        if rows is None and backwards != settings.accumulation_steps:
            return f"the command made {backwards} backward passes{IGNORED}{settings.accumulation_steps}"
        return ""

    def _examined(self, runs: Mapping[int, CommandRun]) -> Examination:
        sizes = sorted(runs)
        peaks = {size: run.ending.peak_anonymous_bytes for size, run in runs.items()}
        smallest = sizes[0]
        slope = (peaks[sizes[-1]] - peaks[smallest]) / (sizes[-1] - smallest) if len(sizes) > 1 else peaks[smallest] / smallest
        slope = max(slope, 1.0)
        base_bytes = max(0, round(peaks[smallest] - slope * smallest))
        shape = tuple(ShapePoint(batch=size, bytes=slope * size) for size in (smallest, smallest * SECOND_FACTOR))
        last = runs[sizes[-1]]
        rows = last.reports.train_rows
        most_batch = (
            None if rows is None else max(smallest, rows // (last.reports.world_size * self._accumulation_steps * LEAST_STEPS))
        )
        rate = last.outcome.samples_per_s if isinstance(last.outcome, Fits) else 1.0
        reports = list(last.reports.trained.values())
        workers = max((count for report in reports for _, count in report.workers), default=0)
        notes = ["batches are those that the command reads first; larger samples may come later in an epoch"]
        if last.reports.rows_per_step is None:
            notes.append("no DataLoader was observed: samples are counted as {batch_size} per backward pass")
        return Examination(
            facts=TaskFacts(
                train_samples=rows,
                eval_samples=None,
                parameters=0,
                parameter_bytes=0,
                optimizer="",
                batch_bytes_per_sample=0.0,
                worst_case="unknown",
            ),
            base_bytes=base_bytes,
            base_accelerator_bytes=None,
            shapes={"train": shape, "eval": shape},
            samples_per_s=rate,
            shape_source="observed",
            notes=tuple(notes),
            command=CommandRecord(
                words=self._template.masked,
                placeholders=self._template.placeholders,
                world_size=last.reports.world_size,
                loader_workers=workers,
            ),
            most_batch=most_batch,
            evaluates=False,
        )


def command_probe(
    reference: TaskReference,
    options: Options,
    environment: Environment,
    budgets: Mapping[str, Budget],
    meter: GroupMeter,
    *,
    deadline: Deadline | None = None,
) -> CommandProbe:
    """Return the probe for the command of `reference`.

    Raises:
        UsageError: an accelerator is requested.
    """
    if options.device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {options.device} cannot be used with a command",
            known="batchcal measures commands on the CPU only; the memory of an accelerator is measured for tasks",
            try_="--device cpu, or a task: batchcal calibrate train.py:task",
        )
    host = budgets.get("cpu") or host_budget_of(environment, options)
    return CommandProbe(
        Template(words=reference.command),
        reference.directory,
        meter,
        host_budget_bytes=host.budget_bytes,
        host_allowed_bytes=min(allowed_for(host.budget_bytes), host.limit_bytes - host.others_bytes),
        threads=environment.optimal_threads,
        steps=options.samples,
        deadline=deadline,
    )
