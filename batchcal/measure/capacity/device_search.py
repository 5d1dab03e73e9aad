"""A running calibration: devices and allocator policies one after another. Each gives a finding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.records.undone import Part, Undone
from batchcal.calibration.schema import Budget, Finding, Options
from batchcal.core.errors import GuardError, Interrupted, NothingFits, Partial, UserCodeError
from batchcal.core.progress import Progress
from batchcal.core.units import count_of, format_bytes
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import OutOfMemory, UserCodeFailed
from batchcal.measure.capacity.attempts import Attempts
from batchcal.measure.capacity.budgets import DeviceBudgets, FenceFailed
from batchcal.measure.capacity.examinations import Examinations
from batchcal.measure.capacity.search_run import SearchContext, SearchResult, SearchRun
from batchcal.measure.capacity.task_sizes import TaskSizes
from batchcal.measure.capacity.time import SearchTime
from batchcal.measure.children.probe import Examination
from batchcal.measure.heap.measurement import heap_growth
from batchcal.measure.race.devices import DevicePolicies
from batchcal.measure.race.policies import race_bytes
from batchcal.measure.time_slices import TimeSlices
from batchcal.values.calibration_events import CalibrationEvent

SHARE_OF_TIME_RACING: Final = 0.4
"""Maximum share of the remaining time for the race of policies."""
SHARE_OF_TIME_OF_FIRST: Final = 0.75
"""Share of the time for the policy that will be used, if `default` is measured, too."""
LEAST_FOR_RACE: Final = 2.0
"""Minimum time for a race of policies, as a multiple of the duration of the examination. A turn of another policy starts a
process, loads the task and runs steps, as the examination does, and the examination under the fastest policy follows. With 20 s,
where the examination took 8 s, the race left no time for a single probe."""


@dataclass
class DeviceSearch:
    """Findings of a calibration so far, and its remaining time."""

    attempts: Attempts
    policies: DevicePolicies
    options: Options
    environment: Environment
    budgets: dict[str, Budget]
    """Budget by device. It changes while the calibration measures."""
    time: SearchTime
    progress: Progress[CalibrationEvent]
    most_trained: int | None = None
    """Largest micro-batch of training. None: no limit."""
    needs_effective_batch: bool = False
    """End before the first probe if neither the options nor the task set an effective batch."""
    until_before_workers: float | None = None
    """End of the search, clock time, if a race of workers with a large possible gain follows."""
    findings: list[Finding] = field(default_factory=list)
    undone: list[Undone] = field(default_factory=list)
    interrupted: Interrupted | None = None

    def __post_init__(self) -> None:
        attempts, options, time = self.attempts, self.options, self.time
        self.slices = TimeSlices(time.clock)
        self.sizes = TaskSizes(attempts.probe, attempts, options, time.clock)
        self._limits = DeviceBudgets(self.budgets, attempts)
        self.examinations = Examinations(
            attempts=attempts,
            sizes=self.sizes,
            options=options,
            environment=self.environment,
            budgets=self._limits,
            time=time,
            slices=self.slices,
            progress=self.progress,
            needs_effective_batch=self.needs_effective_batch,
        )
        self._context = SearchContext(
            attempts=attempts,
            sizes=self.sizes,
            policies=self.policies,
            options=options,
            environment=self.environment,
            budgets=self._limits,
            time=time,
            examinations=self.examinations,
            progress=self.progress,
            most_trained=self.most_trained,
        )

    def run(self) -> None:
        """Fill `findings`. All measurements stay in `attempts.measurements`, also after an error.

        Raises:
            UserCodeError, UsageError: the task fails at every size.
            NothingFits: no size fits on any device.
            Partial: the time limit ended the first examination.
            Interrupted: `findings` holds the results verified before.
        """
        failures: list[NothingFits] = []
        for device in tuple(self.budgets):
            before = len(self.findings), len(self.undone)
            while True:
                try:
                    failures.extend(self._find_all(device, self._allocators(device)))
                    break
                except FenceFailed:
                    # Findings within the narrower margin are searched again. Runs that fitted the smaller budget count.
                    del self.findings[before[0] :], self.undone[before[1] :]
                    self._limits.double_margin(device)
        if not self.findings and failures:
            raise failures[0]

    def _allocators(self, device: str) -> tuple[str, ...]:
        """Return the policy, and always `default`: a script that is not re-executed runs under `default`."""
        undecided = self.policies.to_race(device)
        if undecided:
            budget_bytes = self._limits.bytes_of(device)
            if len(undecided) > 1 and not self.policies.was_raced(device, undecided):
                self.attempts.probe.expect(undecided, race_bytes(budget_bytes))
            examination = self.examinations.examine(device, undecided[0])
            if examination.command is None or len(undecided) > 1:  # each turn of a command is a start
                self._race(device, undecided)
            if self.until_before_workers is not None and self.policies.data_is_heavy(device):
                self.time.until = min(self.time.until, self.until_before_workers)
        return tuple(dict.fromkeys((self.policies.policy(device), "default")))

    def _race(self, device: str, undecided: tuple[str, ...]) -> None:
        """Find the fastest policy. A verified batch size comes first, also under a slower policy."""
        is_affordable = len(undecided) == 1 or self.time.left_s() >= LEAST_FOR_RACE * self.slices.spent_s("examination")
        with self.slices.spent_on("policies"):
            notes = self.policies.race(
                device,
                undecided,
                self.examinations.examine(device, undecided[0]),
                budget_bytes=self._limits.bytes_of(device),
                limit_s=self.time.left_s() * SHARE_OF_TIME_RACING if is_affordable else 0.0,
                rule=self.sizes.active_rule,
            )
        for text in notes:
            self.attempts.note(text)

    def _find_all(self, device: str, allocators: tuple[str, ...]) -> list[NothingFits]:
        """Add one finding for each policy under which a size fits. Return the errors of the other policies."""
        failures: list[NothingFits] = []
        until = self.time.until
        try:
            for allocator in allocators:
                last = allocator == allocators[-1]
                self.time.until = until
                if not last:
                    self.time.shorten(SHARE_OF_TIME_OF_FIRST)
                undone = len(self.undone)
                if self.findings and self.time.left_s() <= 0:
                    self._add_undone("policy", f"{device} under {allocator}: no time was left")
                else:
                    self._try_to_find(device, allocator, failures)
                if last and len(allocators) > 1 and self.findings and self.findings[-1].allocator == allocator:
                    # A script that is not re-executed runs under this policy. There is an answer, possibly smaller than the best.
                    for undone_part in self.undone[undone:]:
                        self.attempts.note(f"not finished: {undone_part.text}")
                    del self.undone[undone:]
        finally:
            self.time.until = until
        return failures

    def _try_to_find(self, device: str, allocator: str, failures: list[NothingFits]) -> None:
        try:
            self._find(device, allocator)
        except NothingFits as error:
            failures.append(error)
            self.attempts.note(f"{device} under {allocator}: {error.what}")
        except (UserCodeError, GuardError, Partial) as error:
            if not self.findings:
                raise
            # Results verified before stay valid, on another device or for training alone.
            self._add_undone("policy", f"{device} under {allocator}: {error.what}")
            self.attempts.note(f"{device} under {allocator}: the measurement failed: {error.what}")

    def _find(self, device: str, allocator: str) -> None:
        """Add the finding of a policy: training, the growth of its heap, evaluation."""
        examination = self.examinations.examine(device, allocator)
        undone, growth = len(self.undone), self._limits.heap_growth.get((device, allocator), 1.0)
        trained = self._search(device, allocator, examination, None)
        if trained.capacity is None and growth > 1 and self.interrupted is None:
            self._give_up_growth(device, allocator)
            trained = self._search(device, allocator, examination, None)
        if trained.capacity is None:
            self._raise_if_interrupted()
            self._raise_nothing_fits(device, allocator, examination, trained.model)
            return
        finding = Finding(
            device=device,
            allocator=allocator,
            train=trained.capacity,
            eval=None,
            train_memory=trained.model,
            eval_memory=None,
            heap_growth=growth,
        )
        self.findings.append(finding)  # verified, whatever happens later
        finding = self.findings[-1] = self._after_many_steps(finding, examination, undone)
        self._raise_if_interrupted()
        probe_size = self.sizes.size_off_multiple
        if probe_size is not None:
            target = self.examinations.target(device, allocator, "train", self._limits.bytes_of(device))
            self.examinations.explain(probe_size, target, examination, has_answer=True)
        if not examination.evaluates:
            return
        evaluated = self._search(device, allocator, examination, finding)
        self.findings[-1] = finding.model_copy(update={"eval": evaluated.capacity, "eval_memory": evaluated.model})
        self._raise_if_interrupted()

    def _search(self, device: str, allocator: str, examination: Examination, trained: Finding | None) -> SearchResult:
        """Search the capacity of training, or of the evaluation after the training in `trained`."""
        with self.slices.spent_on("train-capacity" if trained is None else "eval-capacity"):
            search_run = SearchRun(self._context, device, allocator, examination, trained, has_answer=bool(self.findings))
            result = search_run.run()
        self.undone += result.undone
        self.interrupted = result.interrupted or self.interrupted
        return result

    def _after_many_steps(self, finding: Finding, examination: Examination, undone: int) -> Finding:
        """Return `finding`, or a smaller one if the heap grows so much over many steps that `finding` would exceed the budget.

        Args:
            undone: number of undone parts before the search for `finding`.
        """
        device, allocator = finding.device, finding.allocator
        if (device, allocator) in self._limits.heap_growth or self.interrupted is not None:
            return finding
        try:
            with self.slices.spent_on("heap-growth"):
                growth = heap_growth(
                    self.attempts,
                    finding,
                    examination,
                    budget_bytes=self._limits.bytes_of(device),
                    left_s=self.time.left_s(),
                    rule=self.sizes.active_rule,
                )
        except Interrupted as error:  # the verified result is an answer
            self.interrupted = error
            return finding
        self._limits.heap_growth[device, allocator] = growth
        if growth <= 1:
            return finding
        finding = self.findings[-1] = finding.model_copy(update={"heap_growth": growth})
        searched = len(self.undone)
        try:
            smaller = self._search(device, allocator, examination, None)
        except (UserCodeError, GuardError, Partial) as error:
            self.attempts.note(f"{device} under {allocator}: the search for a smaller size failed: {error.what}")
            smaller = SearchResult(None, finding.train_memory)
        if smaller.capacity is None:
            self._give_up_growth(device, allocator)
            return finding
        del self.undone[undone:searched]
        return finding.model_copy(update={"train": smaller.capacity, "train_memory": smaller.model})

    def _give_up_growth(self, device: str, allocator: str) -> None:
        """From now on, search for sizes that stay within the budget for a few steps."""
        self._limits.heap_growth[device, allocator] = 1.0
        self.attempts.note(
            f"{device} under {allocator}: no verified batch size is certain to stay within the budget over many steps; "
            "the result may exceed the budget"
        )

    def _add_undone(self, part: Part, text: str) -> None:
        self.undone.append(Undone(part=part, text=text))

    def _raise_if_interrupted(self) -> None:
        if self.interrupted is not None:
            raise self.interrupted

    def _raise_nothing_fits(self, device: str, allocator: str, examination: Examination, model: MemoryModel) -> None:
        """Raise an error if nothing fits. Return if time or probes ended first."""
        if self.undone:
            return
        outcomes = [
            measured.outcome
            for measured in reversed(self.attempts.measurements)
            if (measured.device, measured.allocator) == (device, allocator)
        ]
        for refused in outcomes:
            if isinstance(refused, UserCodeFailed):
                raise UserCodeError(refused.error, known=(refused.traceback or refused.output).strip(), try_=refused.hint)
        budget = self.budgets[device]
        smallest = max(self.options.multiple_of, self.sizes.active_rule.least)
        last = outcomes[0] if outcomes else None
        if isinstance(last, OutOfMemory) and last.source == "shm":
            raise NothingFits(
                f"nothing fits: a batch of {count_of(smallest, 'sample')} from a DataLoader worker does not fit into /dev/shm",
                known=f"workers pass their batches through shared memory; {last.detail}",
                try_="--workers 0, or a larger /dev/shm (docker run --shm-size 1g)",
            )
        raise NothingFits(
            f"nothing fits: even batch size {smallest} needs about {format_bytes(model.predict(smallest))} "
            f"and the budget is {format_bytes(budget.budget_bytes)}",
            known=f"limit {format_bytes(budget.limit_bytes)} ({budget.learned_from}), "
            f"used by other processes {format_bytes(budget.others_bytes)}, margin {format_bytes(budget.margin_bytes)}; "
            f"the task without a batch uses {format_bytes(examination.base_bytes)}",
            try_="a larger container, a smaller model, or a smaller --margin",
        )
