"""A running calibration: devices and allocator policies one after another. Each gives a finding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED, MemoryModel
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.undone import Part, Undone
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.calibration.schema import Budget, Capacity, Finding, LimitedBy, Measurement, Mode, Options, usable_bytes
from batchcal.core.clock import Clock
from batchcal.core.errors import GuardError, Interrupted, NothingFits, Partial, UserCodeError
from batchcal.core.progress import Progress
from batchcal.core.units import count_of, format_bytes
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Fits, OutOfMemory, TimedOut, UserCodeFailed
from batchcal.measure.attempts import Attempts, SearchTarget, detail
from batchcal.measure.children.probe import Examination, InterruptedAfterTraining, Probe
from batchcal.measure.heap.measurement import heap_growth
from batchcal.measure.race.devices import DevicePolicies
from batchcal.measure.race.policies import race_bytes
from batchcal.measure.search.bounds import bounds_for
from batchcal.measure.search.capacity import EXPANSION, Bounds, CapacitySearch, SizeRequest
from batchcal.measure.search.evaluation import (
    EVAL_MISSES,
    larger_budget,
    mapped_share,
    no_faster,
)
from batchcal.measure.search.prior import Prior
from batchcal.measure.search.settling import least_steps, steps_before_evaluation
from batchcal.measure.task_sizes import TaskSizes
from batchcal.measure.time_slices import TimeSlices
from batchcal.measure.workers.requested import check_growth, reserve, try_requested
from batchcal.measure.workers.trial import trial_of
from batchcal.plan.division.rules import mismatch_note
from batchcal.plan.effective_batch import not_set
from batchcal.values.calibration_events import BestFound, CalibrationEvent, PhaseBegan
from batchcal.workload.facts import TaskFacts

STATIC_LIMIT_S: Final = 3.0
DEADLINE_LEAST_S: Final = 10.0
"""Minimum time for a probe that has started, however little of the time limit is left."""
FOR_AN_ANSWER_S: Final = 5.0
"""Time that the first probe, or the trials before it, can count on before the end of the time limit, however little is left."""
EXTRA_STEPS: Final = 1
"""A probe's start and warm-up take about as long as one of its steps."""
SHARE_OF_TIME_AT_FIRST: Final = 0.15
SHARE_OF_TIME: Final = 0.6
SHARE_OF_TIME_EVALUATING: Final = 0.4
SHARE_OF_TIME_RACING: Final = 0.4
"""Maximum shares of the remaining time for the expected duration of a probe. The first probe uses the rate of a small batch, and
large batches were up to three times slower. Later probes use the rate of a size up to four times smaller (607 samples/s at 1,274
and less than 400 at 4,297: 48 s wasted). The first evaluation uses the rate of training, and trains before it evaluates."""
SHARE_OF_TIME_OF_FIRST: Final = 0.75
"""Share of the time for the policy that will be used, if `default` is measured, too."""
LEAST_FOR_RACE: Final = 2.0
"""Minimum time for a race of policies, as a multiple of the duration of the examination. A turn of another policy starts a
process, loads the task and runs steps, as the examination does, and the examination under the fastest policy follows. With 20 s,
where the examination took 8 s, the race left no time for a single probe."""
WORTH_A_PROBE: Final = 1.2
LIMIT_NAMES: Final[dict[LimitedBy, str]] = {"time-limit": "the time limit", "max-probes": "the limit of probes (--max-probes)"}
MARGIN_DOUBLINGS: Final = 2
"""Maximum number of doublings of a margin. 15 % of the limit becomes 60 %: if that does not help, the margin is not the cause."""


class _FenceFailed(Exception):
    """The kernel's OOM killer killed a probe. The search starts again within a smaller budget."""


@dataclass
class DeviceSearch:
    """Findings of a calibration so far, and its remaining time."""

    probe: Probe
    attempts: Attempts
    policies: DevicePolicies
    options: Options
    environment: Environment
    budgets: dict[str, Budget]
    clock: Clock
    progress: Progress[CalibrationEvent]
    until: float
    """Clock time after which no further child starts."""
    ends: float
    """Clock time at which the complete time limit has passed. The search has a share of it."""
    most_trained: int | None = None
    """Largest micro-batch of training. None: no limit."""
    needs_effective_batch: bool = False
    """End before the first probe if neither the options nor the task set an effective batch."""
    until_before_workers: float | None = None
    """Value of `until` if a race of workers with a large possible gain follows."""
    findings: list[Finding] = field(default_factory=list)
    examinations: dict[str, Examination] = field(default_factory=dict)
    promises: list[PromiseCheck] = field(default_factory=list)
    loader_workers: LoaderWorkers | None = None
    """Result for the workers that the user requested."""
    undone: list[Undone] = field(default_factory=list)
    interrupted: Interrupted | None = None
    _heap_growth: dict[tuple[str, str], float] = field(default_factory=dict)
    """Heap growth by device and policy, see `Finding.heap_growth`."""
    _examined: dict[tuple[str, str], Examination] = field(default_factory=dict)
    _doubled: dict[str, int] = field(default_factory=dict)
    """Number of doublings of the margin, by device."""
    _widened: set[str] = field(default_factory=set)
    """Devices with a margin that covers samples that were not examined."""

    def __post_init__(self) -> None:
        self.sizes = TaskSizes(self.probe, self.attempts, self.options, self.clock)
        self.slices = TimeSlices(self.clock)

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
                except _FenceFailed:
                    # Findings within the narrower margin are searched again. Runs that fitted the smaller budget count.
                    del self.findings[before[0] :], self.undone[before[1] :]
                    self._double_margin(device)
        if not self.findings and failures:
            raise failures[0]

    def _allocators(self, device: str) -> tuple[str, ...]:
        """Return the policy, and always `default`: a script that is not re-executed runs under `default`."""
        undecided = self.policies.to_race(device)
        if undecided:
            if len(undecided) > 1 and not self.policies.was_raced(device, undecided):
                self.probe.expect(undecided, race_bytes(self.budgets[device].budget_bytes))
            examination = self._examine(device, undecided[0])
            # A verified batch size comes first, also under a slower policy.
            is_affordable = len(undecided) == 1 or self._left_s() >= LEAST_FOR_RACE * self.slices.spent_s("examination")
            with self.slices.spent_on("policies"):
                notes = self.policies.race(
                    device,
                    undecided,
                    examination,
                    budget_bytes=self.budgets[device].budget_bytes,
                    limit_s=self._left_s() * SHARE_OF_TIME_RACING if is_affordable else 0.0,
                    rule=self.sizes.active_rule,
                )
            for text in notes:
                self.attempts.note(text)
            if self.until_before_workers is not None and self.policies.data_is_heavy(device):
                self.until = min(self.until, self.until_before_workers)
        return tuple(dict.fromkeys((self.policies.policy(device), "default")))

    def _find_all(self, device: str, allocators: tuple[str, ...]) -> list[NothingFits]:
        """Add one finding for each policy under which a size fits. Return the errors of the other policies."""
        failures: list[NothingFits] = []
        until = self.until
        try:
            for allocator in allocators:
                last = allocator == allocators[-1]
                self.until = until if last else self.clock.monotonic() + self._left_s() * SHARE_OF_TIME_OF_FIRST
                undone = len(self.undone)
                if self.findings and self._left_s() <= 0:
                    self._add_undone("policy", f"{device} under {allocator}: no time was left")
                else:
                    self._try_to_find(device, allocator, failures)
                if last and len(allocators) > 1 and self.findings and self.findings[-1].allocator == allocator:
                    # A script that is not re-executed runs under this policy. There is an answer, possibly smaller than the best.
                    for undone_part in self.undone[undone:]:
                        self.attempts.note(f"not finished: {undone_part.text}")
                    del self.undone[undone:]
        finally:
            self.until = until
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

    def _double_margin(self, device: str) -> None:
        """Double the margin: the kernel's OOM killer fired before the fence, so there is less memory than it seems."""
        budget = self.budgets[device]
        self.budgets[device] = budget.model_copy(
            update={
                "margin_bytes": 2 * budget.margin_bytes,
                "budget_bytes": max(0, budget.budget_bytes - budget.margin_bytes),
            }
        )
        self.attempts.note(
            f"the margin on {device} is doubled to {format_bytes(2 * budget.margin_bytes)}, because the kernel's OOM killer fired"
        )

    def _widen_margin(self, device: str, examination: Examination) -> None:
        """Leave room for samples that are larger than the largest known sample."""
        factor = examination.facts.unseen_factor
        if factor <= 1 or device in self._widened:
            return
        self._widened.add(device)
        budget = self.budgets[device]
        base = examination.base_bytes if examination.base_accelerator_bytes is None else examination.base_accelerator_bytes
        extra = int(max(0, budget.budget_bytes - base) * (1 - 1 / factor))
        self.budgets[device] = budget.model_copy(
            update={"margin_bytes": budget.margin_bytes + extra, "budget_bytes": budget.budget_bytes - extra}
        )
        self.attempts.note(
            f"the margin on {device} is {format_bytes(extra)} larger, because the largest sample may be {factor:.2g} times as "
            "large as the largest sample that was examined; Task(size_of=...) makes this exact"
        )

    def _check_fence(self, device: str) -> None:
        """Raise _FenceFailed if the number of probes that the kernel killed exceeds the number of doublings of the margin."""
        kills = sum(
            measured.device == device and isinstance(measured.outcome, OutOfMemory) and measured.outcome.source == "kernel"
            for measured in self.attempts.measurements
        )
        doubled = self._doubled.get(device, 0)
        if kills > doubled and doubled < MARGIN_DOUBLINGS:
            self._doubled[device] = doubled + 1
            raise _FenceFailed

    def _find(self, device: str, allocator: str) -> None:
        examination = self._examine(device, allocator)
        undone, growth = len(self.undone), self._heap_growth.get((device, allocator), 1.0)
        train, train_model = self._capacity(device, allocator, examination, None)
        if train is None and growth > 1 and self.interrupted is None:
            self._give_up_growth(device, allocator)
            train, train_model = self._capacity(device, allocator, examination, None)
        if train is None:
            self._raise_if_interrupted()
            self._raise_nothing_fits(device, allocator, examination, train_model)
            return
        finding = Finding(
            device=device,
            allocator=allocator,
            train=train,
            eval=None,
            train_memory=train_model,
            eval_memory=None,
            heap_growth=growth,
        )
        self.findings.append(finding)  # verified, whatever happens later
        finding = self.findings[-1] = self._after_many_steps(finding, examination, undone)
        self._raise_if_interrupted()
        probe_size = self.sizes.size_off_multiple
        if probe_size is not None:
            budget = self.budgets[device].budget_bytes
            self._explain(probe_size, self._target(device, allocator, "train", budget), examination)
        evaluation, evaluation_model = self._capacity(device, allocator, examination, finding)
        self.findings[-1] = finding.model_copy(update={"eval": evaluation, "eval_memory": evaluation_model})
        self._raise_if_interrupted()

    def _examine(self, device: str, allocator: str) -> Examination:
        examination = self._examined.get((device, allocator))
        if examination is None:
            why = "loading the task"
            self.progress.event(PhaseBegan(phase="profile", device=device, allocator=allocator, why=why))
            budget = self.budgets[device].budget_bytes
            with self.slices.spent_on("examination"):
                examination = self.sizes.examine(device, allocator, budget, STATIC_LIMIT_S)
            self._examined[device, allocator] = examination
            self._widen_margin(device, examination)
            if not self.options.workers and self.examinations.get(device) is None:
                self._reserve(examination.facts.kept_bytes, examination, "the dataset keeps the samples that it has read")
        if self.needs_effective_batch and not (self.options.effective_batch or examination.facts.effective_batch):
            raise not_set()
        self._try_workers(device, allocator)
        if not self.examinations:
            self.examinations[device] = examination  # before the trials, so that the facts are recorded if an error ends them
            target = self._target(device, allocator, "train", self.budgets[device].budget_bytes)
            for size in self.sizes.suspects(examination):
                self._explain(size, target, examination)
        self.examinations.setdefault(device, examination)
        violated = (mismatch_note(check) for check in examination.promises if check.promise == "mean-over-weight")
        for text in (*examination.notes, *examination.facts.notes, *filter(None, violated)):
            self.attempts.note(text)
        return examination

    def _try_workers(self, device: str, allocator: str) -> None:
        """Try the workers that the user requested, before any measurement uses them.

        Raises:
            UserCodeError, Partial, NothingFits: see `try_requested`.
        """
        workers, examination = self.options.workers, self._examined[device, allocator]
        if not workers or self.loader_workers is not None:
            return
        with self.slices.spent_on("worker-trial"):
            report = try_requested(self.probe, trial_of(device, allocator, requested=workers, left_s=self._left_s()), workers)
        each = max(report.workers.growth_bytes, examination.facts.kept_bytes)
        if "cpu" in self.budgets:
            check_growth(self.budgets["cpu"], each, workers, base_bytes=examination.base_bytes)
        self.promises.append(report.check)
        self.loader_workers = report.workers
        if report.workers.start is not None:
            self.attempts.note(f"DataLoader workers are started by {report.workers.start}: {report.workers.why_start}")
        self._reserve(workers * each, examination, f"{count_of(workers, 'worker')} grow while they read")

    def _largest_useful(self, device: str, allocator: str, examination: Examination) -> int | None:
        """Return the size above which no micro-batch trains faster: the effective batch, or less. None: unknown, or a larger one
        is of use because dividing a batch of this task changes the training."""
        results = {check.promise: check.result for check in examination.promises}
        is_divisible = results.get("mean-over-weight") == "ok" and results.get("batch-statistics") == "ok"
        is_divisible &= results.get("step-without-loss") != "violated" and not self.sizes.active_rule.one_size
        if self.options.objective != "throughput" or not is_divisible or self.options.min_micro_batch is not None:
            return None
        timed = [speeds for speeds in self.policies.speeds if speeds.device == device and speeds.times]
        timed.sort(key=lambda speeds: speeds.allocator != allocator)
        by_speed: int | None = None
        if timed:
            # Beside the chosen policy, another one serves scripts that cannot use it. Its timed sizes are enough for their plans.
            is_enough = allocator != self.policies.policy(device) and len(timed[0].times) > 1
            by_speed = timed[0].times[-1].micro_batch if is_enough else timed[0].largest_useful
        useful = (by_speed, self.options.effective_batch or examination.facts.effective_batch)
        size = min((size for size in useful if size is not None), default=None)
        rule = self.sizes.active_rule
        return None if size is None else max(rule.least, -(-size // rule.multiple_of) * rule.multiple_of)

    def _target(self, device: str, allocator: str, mode: Mode, budget_bytes: int) -> SearchTarget:
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

    def _after_training(self, target: SearchTarget, trained: Finding) -> SearchTarget:
        """Return `target` with the training steps that run before an evaluation."""
        steps = steps_before_evaluation(mapped_share(trained))
        return replace(
            target,
            train_batch=self._before_evaluation(trained, steps),
            train_steps=steps,
            train_peak_bytes=trained.train.peak_bytes,
        )

    def _explain(self, size: int, target: SearchTarget, examination: Examination) -> bool:
        """Run trials around `size`. Return True if they show another rule of the task's sizes."""
        bounds = (examination.facts.train_samples, self.options.max_batch)
        ceiling = min((bound for bound in bounds if bound is not None), default=UNBOUNDED)
        base = examination.base_bytes if examination.base_accelerator_bytes is None else examination.base_accelerator_bytes
        until = self.until if self.findings else max(self.until, min(self.clock.monotonic() + FOR_AN_ANSWER_S, self.ends))
        return self.sizes.explain(size, target, ceiling=ceiling, until=until, base_bytes=base)

    def _reserve(self, grown_bytes: int, examination: Examination, why: str) -> None:
        budget = self.budgets.get("cpu")
        if budget is not None and grown_bytes and not budget.reserved_bytes:
            self.budgets["cpu"], grows = reserve(budget, grown_bytes, base_bytes=examination.base_bytes)
            self.attempts.note(f"{why}: {grows}")

    def _usable_bytes(self, device: str, allocator: str, examination: Examination) -> int:
        """Memory that a probe may hold, bytes."""
        growth = self._heap_growth.get((device, allocator), 1.0)
        return usable_bytes(self.budgets[device].budget_bytes, examination.base_bytes, growth)

    def _after_many_steps(self, finding: Finding, examination: Examination, undone: int) -> Finding:
        """Return `finding`, or a smaller one if the heap grows so much over many steps that `finding` would exceed the budget.

        Args:
            undone: number of undone parts before the search for `finding`.
        """
        device, allocator = finding.device, finding.allocator
        if (device, allocator) in self._heap_growth or self.interrupted is not None:
            return finding
        budget_bytes = self.budgets[device].budget_bytes
        try:
            with self.slices.spent_on("heap-growth"):
                growth = heap_growth(
                    self.attempts,
                    finding,
                    examination,
                    budget_bytes=budget_bytes,
                    left_s=self._left_s(),
                    rule=self.sizes.active_rule,
                )
        except Interrupted as error:  # the verified result is an answer
            self.interrupted = error
            return finding
        self._heap_growth[device, allocator] = growth
        if growth <= 1:
            return finding
        finding = self.findings[-1] = finding.model_copy(update={"heap_growth": growth})
        searched = len(self.undone)
        try:
            train, model = self._capacity(device, allocator, examination, None)
        except (UserCodeError, GuardError, Partial) as error:
            train, model = None, finding.train_memory
            self.attempts.note(f"{device} under {allocator}: the search for a smaller size failed: {error.what}")
        if train is None:
            self._give_up_growth(device, allocator)
            return finding
        del self.undone[undone:searched]
        return finding.model_copy(update={"train": train, "train_memory": model})

    def _give_up_growth(self, device: str, allocator: str) -> None:
        """From now on, search for sizes that stay within the budget for a few steps."""
        self._heap_growth[device, allocator] = 1.0
        self.attempts.note(
            f"{device} under {allocator}: no verified batch size is certain to stay within the budget over many steps; "
            "the result may exceed the budget"
        )

    def _add_undone(self, part: Part, text: str) -> None:
        self.undone.append(Undone(part=part, text=text))

    def _raise_if_interrupted(self) -> None:
        if self.interrupted is not None:
            raise self.interrupted

    def _capacity(
        self, device: str, allocator: str, examination: Examination, trained: Finding | None
    ) -> tuple[Capacity | None, MemoryModel]:
        """Return the largest size that was run, for training, or for the evaluation after the training in `trained`. None: no
        size was verified, for lack of memory or time."""
        with self.slices.spent_on("train-capacity" if trained is None else "eval-capacity"):
            return self._search(device, allocator, examination, trained)

    def _search(
        self, device: str, allocator: str, examination: Examination, trained: Finding | None
    ) -> tuple[Capacity | None, MemoryModel]:
        """Run the three phases of `_capacity`."""
        mode: Mode = "train" if trained is None else "eval"
        base = examination.base_bytes if examination.base_accelerator_bytes is None else examination.base_accelerator_bytes
        prior = Prior.of(device, allocator)
        shape = prior.shape(examination.shapes[mode])
        bounds_by = partial(
            bounds_for,
            device,
            self._usable_bytes(device, allocator, examination),
            self.options,
            examination.facts,
            trained=trained,
            shape=shape,
            prior=prior,
            shm=self.environment.shared_memory,
            most_trained=self.most_trained,
            largest_useful=self._largest_useful(device, allocator, examination),
        )
        bounds = bounds_by(rule=self.sizes.rule)
        if bounds.multiple_of < self.options.multiple_of and trained is None:
            self.attempts.note(
                f"no batch size up to {bounds.ceiling} is a multiple of {self.options.multiple_of}; "
                f"{bounds.ceiling} is the largest possible size ({bounds.ceiling_reason})"
            )
        search = CapacitySearch(
            bounds,
            shape,
            base_bytes=base,
            source=examination.shape_source,
            prior_ratio=prior.ratio,
            spread=prior.spread,
        )
        target = self._target(device, allocator, mode, bounds.budget_bytes)
        target = target if trained is None else self._after_training(target, trained)
        best: Measurement | None = None
        measured: Measurement | None = None
        ended: LimitedBy | None = None
        phase, largest_requested, misses = "", 0, 0
        for recalled in self.attempts.recall(target):
            if recalled.batch <= bounds.ceiling:  # /dev/shm or the dataset may hold less today
                best = self._learn(search, recalled, best, trained, examination)
        self._check_fence(device)
        while (request := search.next_request()) is not None and (mode == "train" or best is not None or misses < EVAL_MISSES):
            affordable = self._affordable(request, best, target, trained=trained, examination=examination, bounds=bounds)
            if not isinstance(affordable, int):
                ended = affordable
                self._add_undone("search", f"{device} under {allocator}, {mode}: {_next_batch(request.batch, ended)}")
                break
            if affordable < request.batch:
                largest_requested = max(largest_requested, request.batch)
                request = search.part_of(request, affordable)
            if request.phase != phase:
                phase = request.phase
                self.progress.event(PhaseBegan(phase=phase, mode=mode, why=request.why))
            try:
                deadline_s = max(self._left_s(), DEADLINE_LEAST_S)
                measured = self.attempts.run(
                    request,
                    target,
                    deadline_s=deadline_s,
                    one_size=self.sizes.active_rule.one_size,
                    evaluation_steps=self._evaluation_steps(request, target, bounds, examination.facts),
                )
                if mode == "train" and self._is_explained(measured, target, examination):
                    bounds = bounds_by(rule=self.sizes.rule)
                    search.restrict(bounds)
                    continue
            except Interrupted as error:  # the verified result is an answer; the caller gets the error right after
                self.interrupted, ended = error, "time-limit"
                best = self._learn_interrupted(error, search, best, examination)
                break
            before, best = best, self._learn(search, measured, best, trained, examination)
            self._check_fence(device)
            if mode == "eval" and no_faster(before, best) and search.next_request() is not None:
                ended = "speed"
                break
            misses += measured.outcome.kind != "fits"
        if mode == "eval" and best is None and ended is None and (why := _no_evaluation(measured, misses, bounds.start)):
            self.attempts.note(f"{device} under {allocator}: {why}")
        if ended is None and search.inconclusive:
            self._add_undone("search", f"{device} under {allocator}, {mode}: {search.inconclusive}")
        elif ended is None and best is None and measured is not None and isinstance(measured.outcome, TimedOut):
            # Not even the smallest batch ended in time, which shows nothing about memory.
            self._add_undone(
                "search", f"{device} under {allocator}, {mode}: batch {measured.batch} timed out {detail(measured.outcome)}"
            )
        if best is None or not isinstance(best.outcome, Fits):
            return None, search.model
        if ended is None and search.upper > largest_requested > best.batch:
            # The time limit had reduced the size, and the rest was not worth a probe of its own.
            ended = "time-limit"
            if largest_requested > best.batch * WORTH_A_PROBE:
                self._add_undone("search", f"{device} under {allocator}, {mode}: {_next_batch(largest_requested, ended)}")
        capacity = Capacity(
            batch=best.batch,
            peak_bytes=best.outcome.peak.bytes_on(device),
            samples_per_s=best.outcome.samples_per_s,
            measured_by=best.sequence,
            limited_by=ended or search.limited_by,
            undone=search.undone if ended in ("time-limit", "max-probes") else search.inconclusive,
            accumulated=mode == "train",
        )
        return capacity, search.model

    def _evaluation_steps(self, request: SizeRequest, target: SearchTarget, bounds: Bounds, facts: TaskFacts) -> int:
        """Return the number of steps of an evaluation in the process of a training. 0: the evaluation has a process of its own,
        because the training may not be the last one, or because its memory must not be that of other batches."""
        is_last = target.mode == "train" and request.batch >= bounds.ceiling
        is_simple = target.device == "cpu" and not target.num_workers and not self.sizes.active_rule.one_size
        samples = facts.eval_samples or facts.train_samples
        is_possible = is_simple and (samples is None or request.batch <= samples)
        return least_steps("eval", request.mapped_share) if is_last and is_possible else 0

    def _is_explained(self, measured: Measurement, target: SearchTarget, examination: Examination) -> bool:
        """True if the user's code refused a size because of a rule that is now known. The search then requests sizes of the
        rule."""
        outcome = measured.outcome
        if isinstance(outcome, Fits):
            self.sizes.record(measured.batch, accepted=True)
        if not isinstance(outcome, UserCodeFailed):
            return False
        self.sizes.record_refusal(measured.batch, outcome.error)
        if not self._explain(measured.batch, target, examination):
            return False
        rule = self.sizes.active_rule
        return rule.restricts and (rule.one_size or not rule.admits(measured.batch))

    def _learn(
        self,
        search: CapacitySearch,
        measured: Measurement,
        best: Measurement | None,
        trained: Finding | None,
        examination: Examination,
    ) -> Measurement | None:
        """Pass the verdict of a run to the search. Return the run of the largest batch that fits."""
        # The examination ran a tiny batch. A failure at a larger batch means that the task refuses this size, not that the task
        # fails. If every evaluation fails, training is still possible.
        tiny = self.sizes.smallest
        works = measured.batch > tiny or trained is not None
        verdict, peak = self.attempts.verdict(measured, search.best or (tiny if works else None))
        larger = trained is not None and measured.batch > trained.train.batch
        budget = self._usable_bytes(measured.device, measured.allocator, examination)
        if verdict == "fits" and larger and peak is not None and peak > larger_budget(budget, measured):
            verdict = "too-big"
        search.add(measured.batch, verdict, peak)
        if verdict == "refused":
            search.accept(self.sizes.accepted)
        if verdict != "fits" or (best is not None and measured.batch <= best.batch):
            return best
        self.progress.event(BestFound(mode=measured.mode, batch=measured.batch, peak_bytes=peak))
        return measured

    def _learn_interrupted(
        self, error: Interrupted, search: CapacitySearch, best: Measurement | None, examination: Examination
    ) -> Measurement | None:
        """Pass the verdict of a training to the search if the signal stopped the evaluation after it. Return as `_learn`."""
        if not isinstance(error, InterruptedAfterTraining):
            return best
        return self._learn(search, self.attempts.measurements[-1], best, None, examination)

    def _affordable(
        self,
        request: SizeRequest,
        best: Measurement | None,
        target: SearchTarget,
        *,
        trained: Finding | None,
        examination: Examination,
        bounds: Bounds,
    ) -> int | LimitedBy:
        """Return the requested batch, or as much of it as there is time for. If time or probes are used up, return that limit. A
        probe that the time limit would cut is not started."""
        if self.options.max_probes is not None and self.attempts.started >= self.options.max_probes:
            return "max-probes"
        left_s = self._left_s()
        if best is None and trained is None and not self.findings and self.clock.monotonic() < self.ends:
            left_s = max(left_s, FOR_AN_ANSWER_S)
        if left_s <= 0:
            return "time-limit"
        if best is not None and isinstance(best.outcome, Fits):
            rate, share = best.outcome.samples_per_s, SHARE_OF_TIME
        elif trained is not None:
            rate, share = trained.train.samples_per_s, SHARE_OF_TIME_EVALUATING
        elif examination.shapes_change is False and (timed := self._timed_rate(target, request.batch)) is not None:
            rate, share = timed, SHARE_OF_TIME
        else:
            rate, share = examination.samples_per_s, SHARE_OF_TIME_AT_FIRST
        mode: Mode = "train" if trained is None else "eval"
        most = int(rate * left_s * share / (EXTRA_STEPS + least_steps(mode, request.mapped_share)))
        most -= most % bounds.multiple_of
        if request.batch <= most:
            return request.batch
        if best is None:
            most = max(most, bounds.floor)  # without this probe there is no answer
        elif most < best.batch * WORTH_A_PROBE:
            return "time-limit"
        return most

    def _timed_rate(self, target: SearchTarget, batch: int) -> float | None:
        """Measured rate at the largest timed size, if `batch` is at most one step of the search above it. None: unknown."""
        for speeds in self.policies.speeds:
            if (speeds.device, speeds.allocator) == (target.device, target.allocator) and speeds.times:
                largest = speeds.times[-1]
                return largest.samples_per_s(largest.micro_batch) if batch <= largest.micro_batch * EXPANSION else None
        return None

    def _before_evaluation(self, trained: Finding, steps: int) -> int:
        """Return the training micro-batch that runs before an evaluation: the capacity, or as much of it as time allows."""
        affordable = trained.train.samples_per_s * self._left_s() * SHARE_OF_TIME_EVALUATING / steps
        size = min(trained.train.batch, int(affordable))
        rule = self.sizes.active_rule
        return trained.train.batch if rule.one_size else max(1, rule.at_most(size) or min(rule.smallest, trained.train.batch))

    def _left_s(self) -> float:
        return self.until - self.clock.monotonic()

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


def _next_batch(batch: int, limit: LimitedBy) -> str:
    """Text for a search that a limit ended."""
    return f"a batch of {batch} was next; {LIMIT_NAMES.get(limit, limit)} ended the search"


def _no_evaluation(last: Measurement | None, misses: int, train_batch: int | None) -> str:
    """Reason why the search for an evaluation batch ended without one. Empty: lack of time."""
    if last is None or (misses < EVAL_MISSES and not isinstance(last.outcome, UserCodeFailed)):
        return ""
    if not isinstance(last.outcome, UserCodeFailed):
        return (
            f"no evaluation batch of {last.batch} or more fits into the memory that training at batch {train_batch} leaves; "
            "the rehearsal of a plan measures evaluation after smaller micro-batches"
        )
    fix = "eval_step=..., or a loss that works in evaluation mode"
    if "does not require grad" in last.outcome.error:
        fix = "eval_step=...; it is called without gradients, so code that computes gradients needs torch.enable_grad()"
    return (
        f"the task's own code fails in each evaluation, down to {count_of(last.batch, 'sample')}: {last.outcome.error}. "
        f"A training with eval_data stops with this error at the end of an epoch; try: {fix}"
    )
