"""One search for a capacity: it runs the sizes that `CapacitySearch` requests, as far as time and probes allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.records.undone import Undone
from batchcal.calibration.schema import Capacity, Finding, LimitedBy, Measurement, Mode, Options
from batchcal.core.errors import Interrupted
from batchcal.core.progress import Progress
from batchcal.core.units import count_of
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Fits, TimedOut, UserCodeFailed
from batchcal.measure.capacity.attempts import Attempts
from batchcal.measure.capacity.budgets import DeviceBudgets
from batchcal.measure.capacity.examinations import SHARE_OF_TIME_EVALUATING, Examinations
from batchcal.measure.capacity.task_sizes import TaskSizes
from batchcal.measure.capacity.time import SearchTime
from batchcal.measure.children.probe import Examination, InterruptedAfterTraining
from batchcal.measure.outcomes import detail
from batchcal.measure.race.devices import DevicePolicies
from batchcal.measure.search.bounds import bounds_for
from batchcal.measure.search.capacity import EXPANSION, Bounds, CapacitySearch, SizeRequest
from batchcal.measure.search.evaluation import EVAL_MISSES, larger_budget, no_faster
from batchcal.measure.search.prior import Prior
from batchcal.measure.search.settling import least_steps
from batchcal.values.calibration_events import BestFound, CalibrationEvent, PhaseBegan

DEADLINE_LEAST_S: Final = 10.0
"""Minimum time for a probe that has started, however little of the time limit is left."""
EXTRA_STEPS: Final = 1
"""A probe's start and warm-up take about as long as one of its steps."""
SHARE_OF_TIME_AT_FIRST: Final = 0.15
SHARE_OF_TIME: Final = 0.6
"""Maximum shares of the remaining time for the expected duration of a probe. The first probe uses the rate of a small batch, and
large batches were up to three times slower. Later probes use the rate of a size up to four times smaller (607 samples/s at 1,274
and less than 400 at 4,297: 48 s wasted)."""
WORTH_A_PROBE: Final = 1.2
LIMIT_NAMES: Final[dict[LimitedBy, str]] = {"time-limit": "the time limit", "max-probes": "the limit of probes (--max-probes)"}


@dataclass(frozen=True)
class SearchResult:
    """End of one search."""

    capacity: Capacity | None
    """The largest size that was run. None: no size was verified, for lack of memory or time."""
    model: MemoryModel
    undone: tuple[Undone, ...] = ()
    interrupted: Interrupted | None = None
    """A signal ended the search. `capacity` is what was verified before."""


@dataclass(frozen=True)
class SearchContext:
    """Parts that all searches of a calibration share."""

    attempts: Attempts
    sizes: TaskSizes
    policies: DevicePolicies
    options: Options
    environment: Environment
    budgets: DeviceBudgets
    time: SearchTime
    examinations: Examinations
    progress: Progress[CalibrationEvent]
    most_trained: int | None = None
    """Largest micro-batch of training. None: no limit."""


@dataclass
class SearchRun:
    """The search for one device, policy and mode."""

    context: SearchContext
    device: str
    allocator: str
    examination: Examination
    trained: Finding | None
    """For an evaluation: the training before it. None: this is a search for training."""
    has_answer: bool
    """Another search verified a size."""
    best: Measurement | None = None
    """Run of the largest batch that fits."""
    last: Measurement | None = None
    ended: LimitedBy | None = None
    """Limit that ended the search before it was settled."""
    largest_requested: int = 0
    """Largest size that the time limit had reduced."""
    misses: int = 0
    undone: list[Undone] = field(default_factory=list)
    interrupted: Interrupted | None = None

    def __post_init__(self) -> None:
        self.mode: Mode = "train" if self.trained is None else "eval"
        self._prior = Prior.of(self.device, self.allocator)
        self._shape = self._prior.shape(self.examination.shapes[self.mode])
        self._usable_bytes = self.context.budgets.usable_bytes(self.device, self.allocator, self.examination)
        self._bounds = self._bounds_now()
        options, bounds = self.context.options, self._bounds
        if bounds.multiple_of < options.multiple_of and self.trained is None:
            self.context.attempts.note(
                f"no batch size up to {bounds.ceiling} is a multiple of {options.multiple_of}; "
                f"{bounds.ceiling} is the largest possible size ({bounds.ceiling_reason})"
            )
        self._search = CapacitySearch(
            bounds,
            self._shape,
            base_bytes=self.examination.device_base_bytes,
            source=self.examination.shape_source,
            prior_ratio=self._prior.ratio,
            spread=self._prior.spread,
        )
        target = self.context.examinations.target(self.device, self.allocator, self.mode, bounds.budget_bytes)
        if self.trained is not None:
            target = self.context.examinations.after_training(target, self.trained)
        self._target = target

    def run(self) -> SearchResult:
        """Run the search to its end, or until a limit.

        Raises:
            UserCodeError: the task fails, and no size has worked yet.
            FenceFailed: the kernel's OOM killer killed a probe.
        """
        search, attempts = self._search, self.context.attempts
        for recalled in attempts.recall(self._target):
            if recalled.batch <= self._bounds.ceiling:  # /dev/shm or the dataset may hold less today
                self._learn(recalled)
        self.context.budgets.check_fence(self.device)
        phase = ""
        while (request := self._next_request()) is not None:
            if request.phase != phase:
                phase = request.phase
                self.context.progress.event(PhaseBegan(phase=phase, mode=self.mode, why=request.why))
            before = self.best
            try:
                measured = self._measure(request)
            except Interrupted as error:  # the verified result is an answer; the caller gets the error right after
                self.interrupted, self.ended = error, "time-limit"
                if isinstance(error, InterruptedAfterTraining):
                    self._learn(attempts.measurements[-1])
                break
            if measured is None:
                continue
            self._learn(measured)
            self.context.budgets.check_fence(self.device)
            if self.mode == "eval" and no_faster(before, self.best) and search.next_request() is not None:
                self.ended = "speed"
                break
            self.misses += measured.outcome.kind != "fits"
        self._explain_end()
        return SearchResult(self._capacity(), search.model, tuple(self.undone), self.interrupted)

    def _next_request(self) -> SizeRequest | None:
        """Return the next size to run, or as much of it as there is time for. None: the search has ended."""
        request = self._search.next_request()
        if request is None or (self.mode == "eval" and self.best is None and self.misses >= EVAL_MISSES):
            return None
        affordable = self._affordable(request)
        if not isinstance(affordable, int):
            self.ended = affordable
            self._add_undone(_next_batch(request.batch, affordable))
            return None
        if affordable < request.batch:
            self.largest_requested = max(self.largest_requested, request.batch)
            request = self._search.part_of(request, affordable)
        return request

    def _measure(self, request: SizeRequest) -> Measurement | None:
        """Run `request`. Return None if its refusal showed another rule of the task's sizes; the search then requests sizes of
        the rule."""
        measured = self.context.attempts.run(
            request,
            self._target,
            deadline_s=max(self.context.time.left_s(), DEADLINE_LEAST_S),
            one_size=self.context.sizes.active_rule.one_size,
            evaluation_steps=self._evaluation_steps(request),
        )
        self.last = measured
        if self.mode == "train" and self._is_explained(measured):
            self._bounds = self._bounds_now()
            self._search.restrict(self._bounds)
            return None
        return measured

    def _bounds_now(self) -> Bounds:
        """Bounds of the search, by the rule of the task's sizes as it is known now."""
        return bounds_for(
            self.device,
            self._usable_bytes,
            self.context.options,
            self.examination.facts,
            trained=self.trained,
            shape=self._shape,
            prior=self._prior,
            shm=self.context.environment.shared_memory,
            most_trained=self.context.most_trained,
            largest_useful=self._largest_useful(),
            most_measurable=self.examination.most_batch,
            rule=self.context.sizes.rule,
        )

    def _largest_useful(self) -> int | None:
        """Return the size above which no micro-batch trains faster: the effective batch, or less. None: unknown, or a larger one
        is of use because dividing a batch of this task changes the training."""
        context, options, rule = self.context, self.context.options, self.context.sizes.active_rule
        results = {check.promise: check.result for check in self.examination.promises}
        is_divisible = results.get("mean-over-weight") == "ok" and results.get("batch-statistics") == "ok"
        is_divisible &= results.get("step-without-loss") != "violated" and not rule.one_size
        if options.objective != "throughput" or not is_divisible or options.min_micro_batch is not None:
            return None
        timed = [speeds for speeds in context.policies.speeds if speeds.device == self.device and speeds.times]
        timed.sort(key=lambda speeds: speeds.allocator != self.allocator)
        by_speed: int | None = None
        if timed:
            # Beside the chosen policy, another one serves scripts that cannot use it. Its timed sizes are enough for their plans.
            is_enough = self.allocator != context.policies.policy(self.device) and len(timed[0].times) > 1
            by_speed = timed[0].times[-1].micro_batch if is_enough else timed[0].largest_useful
        useful = (by_speed, options.effective_batch or self.examination.facts.effective_batch)
        size = min((size for size in useful if size is not None), default=None)
        return None if size is None else max(rule.least, -(-size // rule.multiple_of) * rule.multiple_of)

    def _evaluation_steps(self, request: SizeRequest) -> int:
        """Return the number of steps of an evaluation in the process of a training. 0: the evaluation has a process of its own,
        because the training may not be the last one, or because its memory must not be that of other batches."""
        is_last = self.mode == "train" and request.batch >= self._bounds.ceiling
        is_simple = self.device == "cpu" and not self._target.num_workers and not self.context.sizes.active_rule.one_size
        samples = self.examination.facts.eval_samples or self.examination.facts.train_samples
        is_possible = is_simple and (samples is None or request.batch <= samples)
        return least_steps("eval", request.mapped_share) if is_last and is_possible else 0

    def _is_explained(self, measured: Measurement) -> bool:
        """True if the user's code refused a size because of a rule that is now known."""
        outcome, sizes = measured.outcome, self.context.sizes
        if isinstance(outcome, Fits):
            sizes.record(measured.batch, accepted=True)
        if not isinstance(outcome, UserCodeFailed):
            return False
        sizes.record_refusal(measured.batch, outcome.error)
        examinations = self.context.examinations
        if not examinations.explain(measured.batch, self._target, self.examination, has_answer=self.has_answer):
            return False
        rule = sizes.active_rule
        return rule.restricts and (rule.one_size or not rule.admits(measured.batch))

    def _learn(self, measured: Measurement) -> None:
        """Pass the verdict of a run to the search."""
        # The examination ran a tiny batch. A failure at a larger batch means that the task refuses this size, not that the task
        # fails. If every evaluation fails, training is still possible.
        search, sizes, trained = self._search, self.context.sizes, self.trained
        works = measured.batch > sizes.smallest or trained is not None
        verdict, peak = self.context.attempts.verdict(measured, search.best or (sizes.smallest if works else None))
        larger = trained is not None and measured.batch > trained.train.batch
        if verdict == "fits" and larger and peak is not None and peak > larger_budget(self._usable_bytes, measured):
            verdict = "too-big"
        search.add(measured.batch, verdict, peak)
        if verdict == "refused":
            search.accept(sizes.accepted)
        if verdict == "fits" and (self.best is None or measured.batch > self.best.batch):
            self.best = measured
            self.context.progress.event(BestFound(mode=measured.mode, batch=measured.batch, peak_bytes=peak))

    def _affordable(self, request: SizeRequest) -> int | LimitedBy:
        """Return the requested batch, or as much of it as there is time for. If time or probes are used up, return that limit. A
        probe that the time limit would cut is not started."""
        attempts, options, best = self.context.attempts, self.context.options, self.best
        if options.max_probes is not None and attempts.started >= options.max_probes:
            return "max-probes"
        left_s = self.context.time.left_s(has_answer=best is not None or self.trained is not None or self.has_answer)
        if left_s <= 0:
            return "time-limit"
        rate, share = self._rate_and_share(request)
        most = int(rate * left_s * share / (EXTRA_STEPS + least_steps(self.mode, request.mapped_share)))
        most -= most % self._bounds.multiple_of
        if request.batch <= most:
            return request.batch
        if best is None:
            most = max(most, self._bounds.floor)  # without this probe there is no answer
        elif most < best.batch * WORTH_A_PROBE:
            return "time-limit"
        return most

    def _rate_and_share(self, request: SizeRequest) -> tuple[float, float]:
        """Return the best known rate, samples/s, and the share of the remaining time that a probe may take by this rate."""
        if self.best is not None and isinstance(self.best.outcome, Fits):
            return self.best.outcome.samples_per_s, SHARE_OF_TIME
        if self.trained is not None:
            return self.trained.train.samples_per_s, SHARE_OF_TIME_EVALUATING
        timed = self._timed_rate(request.batch) if self.examination.shapes_change is False else None
        return (self.examination.samples_per_s, SHARE_OF_TIME_AT_FIRST) if timed is None else (timed, SHARE_OF_TIME)

    def _timed_rate(self, batch: int) -> float | None:
        """Measured rate at the largest timed size, if `batch` is at most one step of the search above it. None: unknown."""
        for speeds in self.context.policies.speeds:
            if (speeds.device, speeds.allocator) == (self.device, self.allocator) and speeds.times:
                largest = speeds.times[-1]
                return largest.samples_per_s(largest.micro_batch) if batch <= largest.micro_batch * EXPANSION else None
        return None

    def _explain_end(self) -> None:
        """Note what the search did not settle, and why."""
        last = self.last
        if self.mode == "eval" and self.best is None and self.ended is None:
            why = _no_evaluation(last, self.misses, self._bounds.start)
            if why:
                self.context.attempts.note(f"{self.device} under {self.allocator}: {why}")
        if self.ended is None and self._search.inconclusive:
            self._add_undone(self._search.inconclusive)
        elif self.ended is None and self.best is None and last is not None and isinstance(last.outcome, TimedOut):
            # Not even the smallest batch ended in time, which shows nothing about memory.
            self._add_undone(f"batch {last.batch} timed out {detail(last.outcome)}")
        if self.best is not None and self.ended is None and self._search.upper > self.largest_requested > self.best.batch:
            # The time limit had reduced the size, and the rest was not worth a probe of its own.
            self.ended = "time-limit"
            if self.largest_requested > self.best.batch * WORTH_A_PROBE:
                self._add_undone(_next_batch(self.largest_requested, self.ended))

    def _capacity(self) -> Capacity | None:
        best, search = self.best, self._search
        if best is None or not isinstance(best.outcome, Fits):
            return None
        return Capacity(
            batch=best.batch,
            peak_bytes=best.outcome.peak.bytes_on(self.device),
            samples_per_s=best.outcome.samples_per_s,
            measured_by=best.sequence,
            limited_by=self.ended or search.limited_by,
            undone=search.undone if self.ended in ("time-limit", "max-probes") else search.inconclusive,
            accumulated=self.mode == "train",
        )

    def _add_undone(self, text: str) -> None:
        self.undone.append(Undone(part="search", text=f"{self.device} under {self.allocator}, {self.mode}: {text}"))


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
