"""One calibration while it runs: devices and allocator policies one after the other; each gives a finding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.memory_model import MemoryModel
from batchcal.calibration.schema import Budget, Capacity, Finding, LimitedBy, Measurement, Mode, Options
from batchcal.core.clock import Clock
from batchcal.core.errors import GuardError, Interrupted, NothingFits, UserCodeError
from batchcal.core.progress import Progress
from batchcal.core.units import format_bytes
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Fits, OutOfMemory, UserCodeFailed
from batchcal.measure.attempts import Attempts, Place
from batchcal.measure.children.probe import Examination, Probe
from batchcal.measure.race.devices import DevicePolicies
from batchcal.measure.search.bounds import bounds_for
from batchcal.measure.search.capacity import Ask, Bounds, CapacitySearch
from batchcal.measure.search.evaluation import (
    EVAL_MISSES,
    larger_budget,
    mapped_share,
    no_faster,
)
from batchcal.measure.search.prior import Prior
from batchcal.measure.search.settling import least_steps, steps_before_evaluation

STATIC_LIMIT_S: Final = 3.0
DEADLINE_LEAST_S: Final = 10.0
"""A probe that was begun gets this long, however little of the time limit is left."""
FOR_AN_ANSWER_S: Final = 5.0
"""Time that the first probe of all may reckon with as long as the time limit has not passed, however little of it is left."""
STEPS_BESIDE: Final = 1
"""A probe's start and warm-up take about as long as one of its steps."""
SHARE_OF_TIME_AT_FIRST: Final = 0.15
SHARE_OF_TIME: Final = 0.6
SHARE_OF_TIME_EVALUATING: Final = 0.4
SHARE_OF_TIME_RACING: Final = 0.4
"""How much of the time left a probe may be expected to take. The first only knows the rate of a small batch, and large ones were
up to three times slower; later ones know that of a size up to four times smaller (607 samples/s at 1,274 and less than 400 at
4,297: 48 s for nothing); the first evaluation knows training's, and trains before it evaluates."""
SHARE_OF_TIME_OF_FIRST: Final = 0.75
"""What the policy that will be used may take of the time, where `default` is to be measured besides."""
WORTH_A_PROBE: Final = 1.2
MARGIN_DOUBLINGS: Final = 2
"""15 % of the limit becomes 60 %: where that does not help, a larger margin is not what is missing."""


class _FenceFailed(Exception):
    """The kernel's OOM killer took a probe: the search begins again within a smaller budget."""


@dataclass
class Campaign:
    """What was found so far, and what time is left."""

    probe: Probe
    attempts: Attempts
    policies: DevicePolicies
    options: Options
    environment: Environment
    budgets: dict[str, Budget]
    clock: Clock
    progress: Progress
    until: float
    """Of the clock: when no further child is started."""
    ends: float
    """Of the clock: when the whole of the time limit has passed, of which the campaign has a share."""
    most_trained: int | None = None
    """Nobody trains with a larger micro-batch."""
    until_before_workers: float | None = None
    """The same where a race of workers follows that has much to win."""
    findings: list[Finding] = field(default_factory=list)
    examinations: dict[str, Examination] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    interrupted: Interrupted | None = None
    _examined: dict[tuple[str, str], Examination] = field(default_factory=dict)
    _doubled: dict[str, int] = field(default_factory=dict)
    """How often the margin of a device was doubled."""

    def run(self) -> None:
        """Fills `findings`. What was measured stays in `measurements` however this ends.

        Raises:
            UserCodeError, UsageError: the task fails at every size.
            NothingFits: on no device.
            Interrupted: what was verified before is in `findings` too.
        """
        nothing: list[NothingFits] = []
        for device in tuple(self.budgets):
            before = len(self.findings), len(self.undone)
            while True:
                try:
                    nothing.extend(self._find_all(device, self._allocators(device)))
                    break
                except _FenceFailed:
                    # What was found within the narrower margin is asked again; runs that fitted the smaller budget count.
                    del self.findings[before[0] :], self.undone[before[1] :]
                    self._double_margin(device)
        if not self.findings and nothing:
            raise nothing[0]

    def _allocators(self, device: str) -> tuple[str, ...]:
        """The policy, and always `default`: a script that is not re-executed runs under that."""
        undecided = self.policies.to_race(device)
        if undecided:
            notes = self.policies.race(
                device,
                undecided,
                self._examine(device, undecided[0]),
                budget_bytes=self.budgets[device].budget_bytes,
                limit_s=self._left_s() * SHARE_OF_TIME_RACING,
            )
            for text in notes:
                self.attempts.note(text)
            if self.until_before_workers is not None and self.policies.data_is_heavy(device):
                self.until = min(self.until, self.until_before_workers)
        return tuple(dict.fromkeys((self.policies.policy(device), "default")))

    def _find_all(self, device: str, allocators: tuple[str, ...]) -> list[NothingFits]:
        """One finding for each policy under which something fits; the errors of the others."""
        nothing: list[NothingFits] = []
        until = self.until
        try:
            for allocator in allocators:
                last = allocator == allocators[-1]
                self.until = until if last else self.clock.monotonic() + self._left_s() * SHARE_OF_TIME_OF_FIRST
                undone = len(self.undone)
                if self.findings and self._left_s() <= 0:
                    self.undone.append(f"{device} under {allocator}: no time was left")
                else:
                    self._try_to_find(device, allocator, nothing)
                if last and len(allocators) > 1 and self.findings and self.findings[-1].allocator == allocator:
                    # What a script that is not re-executed uses: there is an answer, if a smaller one than might be.
                    for text in self.undone[undone:]:
                        self.attempts.note(f"not settled: {text}")
                    del self.undone[undone:]
        finally:
            self.until = until
        return nothing

    def _try_to_find(self, device: str, allocator: str, nothing: list[NothingFits]) -> None:
        try:
            self._find(device, allocator)
        except NothingFits as error:
            nothing.append(error)
            self.attempts.note(f"{device} under {allocator}: {error.what}")
        except (UserCodeError, GuardError) as error:
            if not self.findings:
                raise
            # What was verified before stands, on another device or for training alone.
            self.undone.append(f"{device} under {allocator}: {error.what}")
            self.attempts.note(f"{device} under {allocator} failed: {error.what}")

    def _double_margin(self, device: str) -> None:
        """The kernel's OOM killer came before the fence: memory here is less than it seems."""
        budget = self.budgets[device]
        self.budgets[device] = budget.model_copy(
            update={
                "margin_bytes": 2 * budget.margin_bytes,
                "budget_bytes": max(0, budget.budget_bytes - budget.margin_bytes),
            }
        )
        self.attempts.note(
            f"the margin on {device} is doubled, to {format_bytes(2 * budget.margin_bytes)}: the kernel's OOM killer fired"
        )

    def _check_fence(self, device: str) -> None:
        """Raises _FenceFailed where the kernel has killed more probes than the margin was doubled for."""
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
        train, train_model = self._capacity(device, allocator, examination, None)
        if train is None:
            self._go_on()
            self._nothing(device, allocator, examination, train_model)
            return
        finding = Finding(device=device, allocator=allocator, train=train, eval=None, train_memory=train_model, eval_memory=None)
        self.findings.append(finding)
        self._go_on()
        evaluation, evaluation_model = self._capacity(device, allocator, examination, finding)
        self.findings[-1] = finding.model_copy(update={"eval": evaluation, "eval_memory": evaluation_model})
        self._go_on()

    def _examine(self, device: str, allocator: str) -> Examination:
        examination = self._examined.get((device, allocator))
        if examination is None:
            why = "loading the task"
            self.progress.event("phase", {"phase": "profile", "device": device, "allocator": allocator, "why": why})
            budget = self.budgets[device].budget_bytes
            examination = self.probe.examine(device, allocator, budget, STATIC_LIMIT_S)
            self._examined[device, allocator] = examination
        self.examinations.setdefault(device, examination)
        for text in (*examination.notes, *examination.facts.notes):
            self.attempts.note(text)
        return examination

    def _go_on(self) -> None:
        if self.interrupted is not None:
            raise self.interrupted

    def _capacity(
        self, device: str, allocator: str, examination: Examination, trained: Finding | None
    ) -> tuple[Capacity | None, MemoryModel]:
        """The three phases for training, or for the evaluation after what was `trained`. None: nothing was verified, for want of
        memory or of time."""
        mode: Mode = "train" if trained is None else "eval"
        base = examination.base_bytes if examination.base_accelerator_bytes is None else examination.base_accelerator_bytes
        prior = Prior.of(device, allocator)
        shape = prior.shape(examination.shapes[mode])
        bounds = bounds_for(
            device,
            self.budgets[device].budget_bytes,
            self.options,
            examination.facts,
            trained=trained,
            shape=shape,
            prior=prior,
            shm=self.environment.shared_memory,
            most_trained=self.most_trained,
        )
        if bounds.multiple_of < self.options.multiple_of and trained is None:
            self.attempts.note(
                f"no batch is a multiple of {self.options.multiple_of}: "
                f"there is no more than {bounds.ceiling} ({bounds.ceiling_reason})"
            )
        search = CapacitySearch(
            bounds,
            shape,
            base_bytes=base,
            source=examination.shape_source,
            prior_ratio=prior.ratio,
            spread=prior.spread,
        )
        before_steps = 0 if trained is None else steps_before_evaluation(mapped_share(trained))
        place = Place(
            device,
            allocator,
            mode,
            bounds.budget_bytes,
            self.options.samples,
            train_batch=None if trained is None else self._before_evaluation(trained, before_steps),
            train_steps=before_steps,
        )
        best: Measurement | None = None
        ended: LimitedBy | None = None
        phase, wanted, missed = "", 0, 0
        for known in self.attempts.recall(place):
            if known.batch <= bounds.ceiling:  # /dev/shm or the dataset may hold less today
                best = self._learn(search, known, best, trained)
        self._check_fence(device)
        while (ask := search.ask()) is not None:
            affordable = self._affordable(ask, best, trained, examination, bounds)
            if not isinstance(affordable, int):
                ended = affordable
                self.undone.append(f"{device} under {allocator}, {mode}: {ask.phase} {ask.batch}")
                break
            if affordable < ask.batch:
                wanted = max(wanted, ask.batch)
                ask = search.part_of(ask, affordable)
            if ask.phase != phase:
                phase = ask.phase
                self.progress.event("phase", {"phase": phase, "mode": mode, "why": ask.why})
            try:
                measured = self.attempts.run(ask, place, deadline_s=max(self._left_s(), DEADLINE_LEAST_S))
            except Interrupted as error:  # what was verified is an answer; who called is told right after
                self.interrupted, ended = error, "time-limit"
                break
            before, best = best, self._learn(search, measured, best, trained)
            self._check_fence(device)
            if mode == "eval" and no_faster(before, best) and search.ask() is not None:
                ended = "speed"
                break
            missed += measured.outcome.kind != "fits"
            if mode == "eval" and best is None and missed == EVAL_MISSES:
                self.attempts.note(
                    f"{device} under {allocator}: no evaluation of {measured.batch} or more fits into what training at "
                    f"{bounds.start} leaves; the rehearsal of a plan says what does beside smaller micro-batches"
                )
                break
        if ended is None and search.gave_up:
            self.undone.append(f"{device} under {allocator}, {mode}: {search.gave_up}")
        if best is None or not isinstance(best.outcome, Fits):
            return None, search.model
        if ended is None and search.upper > wanted > best.batch:
            # Time had cut what was run, and what it left of the way was not worth a probe of its own.
            ended = "time-limit"
            if wanted > best.batch * WORTH_A_PROBE:
                self.undone.append(f"{device} under {allocator}, {mode}: {phase} {wanted}")
        capacity = Capacity(
            batch=best.batch,
            peak_bytes=best.outcome.peak.held_on(device),
            samples_per_s=best.outcome.samples_per_s,
            measured_by=best.sequence,
            limited_by=ended or search.limited_by,
            undone=search.undone if ended in ("time-limit", "max-probes") else search.gave_up,
            accumulated=mode == "train",
        )
        return capacity, search.model

    def _learn(
        self, search: CapacitySearch, measured: Measurement, best: Measurement | None, trained: Finding | None
    ) -> Measurement | None:
        """Tells the search what a run means; returns the run of the largest batch that fitted."""
        # The examination ran a tiny batch. What fails at a larger one is a size that the task refuses, not the task.
        tiny = max(2, self.options.multiple_of)
        verdict, peak = self.attempts.verdict(measured, search.best or (tiny if measured.batch > tiny else None))
        larger = trained is not None and measured.batch > trained.train.batch
        budget = self.budgets[measured.device].budget_bytes
        if verdict == "fits" and larger and peak is not None and peak > larger_budget(budget, measured):
            verdict = "too-big"
        search.tell(measured.batch, verdict, peak)
        if verdict != "fits" or (best is not None and measured.batch <= best.batch):
            return best
        self.progress.event("best", {"mode": measured.mode, "batch": measured.batch, "peak_bytes": peak})
        return measured

    def _affordable(
        self, ask: Ask, best: Measurement | None, trained: Finding | None, examination: Examination, bounds: Bounds
    ) -> int | LimitedBy:
        """The asked batch, or as much of it as there is time for; or what is used up. What time would cut is not started."""
        if self.options.max_probes is not None and self.attempts.started >= self.options.max_probes:
            return "max-probes"
        left = self._left_s()
        if best is None and trained is None and not self.findings and self.clock.monotonic() < self.ends:
            left = max(left, FOR_AN_ANSWER_S)
        if left <= 0:
            return "time-limit"
        if best is not None and isinstance(best.outcome, Fits):
            rate, share = best.outcome.samples_per_s, SHARE_OF_TIME
        elif trained is not None:
            rate, share = trained.train.samples_per_s, SHARE_OF_TIME_EVALUATING
        else:
            rate, share = examination.samples_per_s, SHARE_OF_TIME_AT_FIRST
        mode: Mode = "train" if trained is None else "eval"
        most = int(rate * left * share / (STEPS_BESIDE + least_steps(mode, ask.mapped_share)))
        most -= most % bounds.multiple_of
        if ask.batch <= most:
            return ask.batch
        if best is None:
            most = max(most, bounds.floor)  # there is no answer without one
        elif most < best.batch * WORTH_A_PROBE:
            return "time-limit"
        return most

    def _before_evaluation(self, trained: Finding, steps: int) -> int:
        """The training micro-batch that runs before an evaluation: the capacity, or as much of it as time allows."""
        affordable = trained.train.samples_per_s * self._left_s() * SHARE_OF_TIME_EVALUATING / steps
        return max(1, min(trained.train.batch, int(affordable)))

    def _left_s(self) -> float:
        return self.until - self.clock.monotonic()

    def _nothing(self, device: str, allocator: str, examination: Examination, model: MemoryModel) -> None:
        """Raises where nothing fits; returns where time or probes ended first."""
        if self.undone:
            return
        for measured in reversed(self.attempts.measurements):
            refused = measured.outcome
            if (measured.device, measured.allocator) == (device, allocator) and isinstance(refused, UserCodeFailed):
                raise UserCodeError(refused.error, known=(refused.traceback or refused.output).strip(), try_=refused.hint)
        budget = self.budgets[device]
        smallest = max(1, self.options.multiple_of)
        raise NothingFits(
            f"nothing fits: even batch size {smallest} needs about {format_bytes(model.predict(smallest))} "
            f"and the budget is {format_bytes(budget.budget_bytes)}",
            known=f"limit {format_bytes(budget.limit_bytes)} ({budget.learned_from}), "
            f"used by others {format_bytes(budget.others_bytes)}, margin {format_bytes(budget.margin_bytes)}; "
            f"the task alone holds {format_bytes(examination.base_bytes)}",
            try_="a larger container, a smaller model, or a smaller --margin",
        )
