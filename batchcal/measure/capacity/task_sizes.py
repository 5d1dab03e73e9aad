"""Finds the batch sizes that the task accepts: the trials of `search/size_trials.py`, and an examination with another size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Final

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Options
from batchcal.core.clock import Clock
from batchcal.core.errors import UserCodeError
from batchcal.guard.outcome import Fits, OutOfMemory, UserCodeFailed
from batchcal.measure.capacity.attempts import Attempts, SearchTarget
from batchcal.measure.children.probe import Examination, Probe, SizeRefused
from batchcal.measure.search.capacity import SizeRequest
from batchcal.measure.search.size_trials import MOST_TRIALS, SizeTrials

SMALLEST: Final = 2
"""Size of the warm-up: BatchNorm refuses one sample."""
FIRST_SIZES: Final = (8, 32, 64, 16, 4, 128, 3, 48, 60, 256)
"""Sizes that most rules admit, for a task with slow steps. All others up to 64 and round numbers follow."""
ROUND_SIZES: Final = (96, 100, 192, 200, 300, 384, 400, 500, 512, 1000, 1024)
LARGEST_NUMBER: Final = 4096
"""Larger numbers in an error message are not tried as a batch size."""
SCOUT_LIMIT_S: Final = 3.0
FRESH_ATTEMPTS: Final = 2
TRIAL_STEPS: Final = 2
"""Number of steps of a trial. The second step accumulates: a task that refuses this refuses the size."""
_NUMBER: Final = re.compile(r"(?<![\w.])\d{1,4}(?![\w.])")
_OF_SIZES: Final = re.compile(r"assert|batch|size|shape|dimension|expected|mat1|view|broadcast|length", re.IGNORECASE)


@dataclass
class TaskSizes:
    """Batch sizes that the task accepts, over all devices and policies."""

    probe: Probe
    attempts: Attempts
    options: Options
    clock: Clock
    _trials: SizeTrials | None = None
    _noted_rule: SizeRule | None = None
    """The rule that was noted last."""
    _confirmed: bool = False
    """False: time or probes ended the trials of the last refusal."""
    _errors: dict[int, str] = field(default_factory=dict)
    """First line of the error by refused size."""

    @property
    def rule(self) -> SizeRule | None:
        """Rule of the task's sizes, with a size that it explains. None: all tried sizes run, or no rule explains the refusals."""
        if self._trials is None:
            return None
        rule = self._trials.rule
        if not self._confirmed:
            # The size that ran is known. If it is the usual tiny batch, other sizes are tried as if there were no rule.
            usual = self._trials.smallest == SizeRule(multiple_of=self.options.multiple_of).smallest
            rule = self._noted_rule if usual else rule and rule.model_copy(update={"assumed": True})
        if rule is None:
            return None
        # The largest refused size speaks for an upper bound; any other rule is clearer by a small one.
        sizes = [size for size in self._errors if not rule.admits(size) or rule.one_size]
        refused = min(sizes, default=None)
        return rule.model_copy(update={"refused": refused, "error": self._errors.get(refused or 0, "")})

    @property
    def active_rule(self) -> SizeRule:
        """Rule for every size that batchcal chooses: the rule of the task, and `--multiple-of`."""
        return self.rule or SizeRule(multiple_of=self.options.multiple_of, least=self.options.multiple_of)

    @property
    def smallest(self) -> int:
        """Size of the tiny steps."""
        return self.active_rule.smallest

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Examine the task, with another tiny size if the task refuses the usual one.

        Raises:
            UserCodeError: see `Probe.examine`. If every size fails: the error of the usual size.
        """
        self.probe.set_size_rule(self.active_rule)
        try:
            examination = self.probe.examine(device, allocator, budget_bytes, limit_s)
        except SizeRefused as error:
            if self._trials is not None:
                raise
            return self._examine_with_other_size(error, device, allocator, budget_bytes, limit_s)
        if self._trials is None:
            self._trials = SizeTrials(self.smallest, multiple_of=self.options.multiple_of)
        return examination

    def suspects(self, examination: Examination) -> tuple[int, ...]:
        """Sizes to try before the first search: the one above an unusual tiny size, else those that failed in the examination."""
        if self._trials is None:
            return ()
        if self._trials.refused:
            return (self._trials.smallest + 1,)
        return examination.refused

    @property
    def size_off_multiple(self) -> int | None:
        """Size that shows if the task needs `--multiple-of`. None: the option was not given, or the answer is known."""
        multiple, most = self.options.multiple_of, self.options.max_batch
        if multiple == 1 or self._trials is None or self._trials.refused:
            return None
        return multiple + 1 if most is None or multiple < most else multiple - 1

    @property
    def accepted(self) -> tuple[int, ...]:
        """Sizes that the task accepted in probes and trials."""
        return () if self._trials is None else self._trials.accepted

    def record(self, batch: int, *, accepted: bool) -> None:
        """Record the result of a probe of the search."""
        if self._trials is not None:
            self._trials.add(batch, accepted=accepted, one_size=self._trials.one_size)

    def explain(self, around: int, target: SearchTarget, *, ceiling: int, until: float, base_bytes: int) -> bool:
        """Run the trials that show if and why the task refuses `around`. Return True if the rule has changed.

        Args:
            ceiling: largest size to try.
            until: clock time after which no further trial starts.
        """
        trials = self._trials
        if trials is None:
            return False
        self._confirmed = False
        for _ in range(MOST_TRIALS + 1):
            trial = trials.next(around, ceiling)
            self._confirmed = trial is None
            if trial is None or self.clock.monotonic() >= until or self._probes_left() <= 1:
                break
            measured = self.attempts.run(
                SizeRequest(trial.batch, "refusal", trial.why, base_bytes),
                replace(target, samples=TRIAL_STEPS),
                deadline_s=max(until - self.clock.monotonic(), 10.0),
                one_size=trial.one_size,
            )
            outcome = measured.outcome
            if isinstance(outcome, UserCodeFailed):
                self._errors[trial.batch] = outcome.error
            elif not isinstance(outcome, Fits) and not (isinstance(outcome, OutOfMemory) and outcome.source == "budget"):
                break  # it shows nothing about the sizes that the user's code accepts
            trials.add(trial.batch, accepted=not isinstance(outcome, UserCodeFailed), one_size=trial.one_size)
        rule = self.rule
        if rule is None or (self._noted_rule is not None and _same(rule, self._noted_rule)):
            return False
        self._noted_rule = rule
        self.probe.set_size_rule(self.active_rule)
        if rule.restricts:
            self.attempts.note(rule.sentence)
        return True

    def _probes_left(self) -> float:
        most = self.options.max_probes
        return math.inf if most is None else most - self.attempts.started

    def record_refusal(self, batch: int, error: str) -> None:
        """Record that the user's code failed at `batch` in a probe of the search."""
        self._errors[batch] = error
        self.record(batch, accepted=False)

    def _examine_with_other_size(
        self, error: SizeRefused, device: str, allocator: str, budget_bytes: int, limit_s: float
    ) -> Examination:
        """Examine the task in a process of its own, with the smallest size that ran in one process with others."""
        usual, multiple = self.smallest, self.options.multiple_of
        sizes = [size for size in (*numbers_in(error.what), *FIRST_SIZES, *range(3, 65), *ROUND_SIZES) if size != usual]
        sizes = [size for size in dict.fromkeys(sizes) if size % multiple == 0 and size <= (self.options.max_batch or size)]
        ran = self.probe.sizes_that_run(device, allocator, tuple(sizes), SCOUT_LIMIT_S)
        for size in sorted(ran)[:FRESH_ATTEMPTS]:
            self.probe.set_size_rule(SizeRule(multiple_of=multiple, least=size))
            try:
                examination = self.probe.examine(device, allocator, budget_bytes, limit_s)
            except SizeRefused:
                continue
            self._trials = SizeTrials(size, multiple_of=multiple)
            self._errors[usual] = error.what
            self._trials.add(usual, accepted=False, one_size=True)
            return examination
        self.probe.set_size_rule(self.active_rule)
        hint = (
            ""
            if error.try_ or not _OF_SIZES.search(error.what)
            else ("--multiple-of N --max-batch N, if the task accepts batches of one size N only")
        )
        raise UserCodeError(error.what, known=error.known, try_=error.try_ or hint)


def numbers_in(text: str) -> tuple[int, ...]:
    """Numbers in an error message that may be the required batch size."""
    return tuple(dict.fromkeys(number for number in map(int, _NUMBER.findall(text)) if 1 < number <= LARGEST_NUMBER))


def _same(rule: SizeRule, other: SizeRule) -> bool:
    """True if batchcal chooses the same sizes by both rules. The search finds an upper bound itself."""
    if rule.fixed != other.fixed:
        return False
    return (rule.multiple_of, rule.least, rule.one_size) == (other.multiple_of, other.least, other.one_size)
