"""Examinations of the task, one for each device and policy, and the trials that follow them: requested workers, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.calibration.schema import Finding, Mode, Options
from batchcal.core.progress import Progress
from batchcal.core.units import count_of
from batchcal.detect.environment import Environment
from batchcal.measure.capacity.attempts import Attempts, SearchTarget
from batchcal.measure.capacity.budgets import DeviceBudgets
from batchcal.measure.capacity.task_sizes import TaskSizes
from batchcal.measure.capacity.time import SearchTime
from batchcal.measure.children.probe import Examination
from batchcal.measure.search.evaluation import mapped_share
from batchcal.measure.search.settling import steps_before_evaluation
from batchcal.measure.time_slices import TimeSlices
from batchcal.measure.workers.requested import check_growth, try_requested
from batchcal.measure.workers.trial import trial_of
from batchcal.plan.division.rules import mismatch_note
from batchcal.plan.effective_batch import not_set
from batchcal.values.calibration_events import CalibrationEvent, PhaseBegan

STATIC_LIMIT_S: Final = 3.0
SHARE_OF_TIME_EVALUATING: Final = 0.4
"""Maximum share of the remaining time for the expected duration of the first evaluation. It uses the rate of training, and trains
before it evaluates."""


@dataclass
class Examinations:
    """Facts of the task, known before its capacities are searched."""

    attempts: Attempts
    sizes: TaskSizes
    options: Options
    environment: Environment
    budgets: DeviceBudgets
    time: SearchTime
    slices: TimeSlices
    progress: Progress[CalibrationEvent]
    needs_effective_batch: bool = False
    """End before the first probe if neither the options nor the task set an effective batch."""
    by_device: dict[str, Examination] = field(default_factory=dict)
    """The first examination on each device."""
    promises: list[PromiseCheck] = field(default_factory=list)
    """Promises that were checked with workers."""
    loader_workers: LoaderWorkers | None = None
    """Result for the workers that the user requested."""
    _examined: dict[tuple[str, str], Examination] = field(default_factory=dict)

    def examine(self, device: str, allocator: str) -> Examination:
        """Return the examination. The first call runs it.

        Raises:
            UserCodeError, Partial, NothingFits: the task fails at every size, or the requested workers do.
            UsageError: there is no effective batch, and the caller needs one.
        """
        examination = self._examined.get((device, allocator))
        if examination is None:
            self.progress.event(PhaseBegan(phase="profile", device=device, allocator=allocator, why="loading the task"))
            with self.slices.spent_on("examination"):
                examination = self.sizes.examine(device, allocator, self.budgets.bytes_of(device), STATIC_LIMIT_S)
            self._examined[device, allocator] = examination
            self.budgets.widen_margin(device, examination)
            if not self.options.workers and device not in self.by_device:
                self.budgets.reserve(examination.facts.kept_bytes, examination, "the dataset keeps the samples that it has read")
        if self.needs_effective_batch and not (self.options.effective_batch or examination.facts.effective_batch):
            raise not_set()
        self._try_workers(device, allocator)
        if not self.by_device:
            self.by_device[device] = examination  # before the trials, so that the facts are recorded if an error ends them
            target = self.target(device, allocator, "train", self.budgets.bytes_of(device))
            for size in self.sizes.suspects(examination):
                self.explain(size, target, examination, has_answer=False)
        self.by_device.setdefault(device, examination)
        violated = (mismatch_note(check) for check in examination.promises if check.promise == "mean-over-weight")
        for text in (*examination.notes, *examination.facts.notes, *filter(None, violated)):
            self.attempts.note(text)
        return examination

    def target(self, device: str, allocator: str, mode: Mode, budget_bytes: int) -> SearchTarget:
        """Return the target of a search, with the requested workers."""
        return SearchTarget(
            device,
            allocator,
            mode,
            budget_bytes,
            self.options.samples,
            num_workers=self.options.workers or 0,
            start=None if self.loader_workers is None else self.loader_workers.start,
            intra_op_threads=self.environment.optimal_threads,
        )

    def after_training(self, target: SearchTarget, trained: Finding) -> SearchTarget:
        """Return `target` with the training steps that run before an evaluation: with the capacity, or as much of it as time
        allows."""
        steps = steps_before_evaluation(mapped_share(trained))
        affordable = int(trained.train.samples_per_s * self.time.left_s() * SHARE_OF_TIME_EVALUATING / steps)
        size, rule = min(trained.train.batch, affordable), self.sizes.active_rule
        batch = trained.train.batch if rule.one_size else max(1, rule.at_most(size) or min(rule.smallest, trained.train.batch))
        return replace(target, train_batch=batch, train_steps=steps, train_peak_bytes=trained.train.peak_bytes)

    def explain(self, size: int, target: SearchTarget, examination: Examination, *, has_answer: bool) -> bool:
        """Run trials around `size`. Return True if they show another rule of the task's sizes.

        Args:
            has_answer: some size is verified. Without one, there is always time for some trials.
        """
        bounds = (examination.facts.train_samples, self.options.max_batch)
        ceiling = min((bound for bound in bounds if bound is not None), default=UNBOUNDED)
        until = self.time.end_of_trials(has_answer=has_answer)
        return self.sizes.explain(size, target, ceiling=ceiling, until=until, base_bytes=examination.device_base_bytes)

    def _try_workers(self, device: str, allocator: str) -> None:
        """Try the workers that the user requested, before any measurement uses them.

        Raises:
            UserCodeError, Partial, NothingFits: see `try_requested`.
        """
        workers, examination = self.options.workers, self._examined[device, allocator]
        if not workers or self.loader_workers is not None:
            return
        with self.slices.spent_on("worker-trial"):
            request = trial_of(device, allocator, requested=workers, left_s=self.time.left_s())
            report = try_requested(self.attempts.probe, request, workers)
        each = max(report.workers.growth_bytes, examination.facts.kept_bytes)
        if "cpu" in self.budgets.by_device:
            check_growth(self.budgets.by_device["cpu"], each, workers, base_bytes=examination.base_bytes)
        self.promises.append(report.check)
        self.loader_workers = report.workers
        if report.workers.start is not None:
            self.attempts.note(f"DataLoader workers are started by {report.workers.start}: {report.workers.why_start}")
        self.budgets.reserve(workers * each, examination, f"{count_of(workers, 'worker')} grow while they read")
