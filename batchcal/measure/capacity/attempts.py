"""Runs the sizes that a search requests, repeats inconclusive runs, keeps every run, and gives its verdict about the size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from batchcal.calibration.records.workers import Start
from batchcal.calibration.schema import Measurement, Mode
from batchcal.core.errors import UserCodeError
from batchcal.core.progress import Note, Progress
from batchcal.guard.outcome import (
    Fits,
    Infrastructure,
    KilledFromOutside,
    OutOfMemory,
    Suspect,
    Swapping,
    TimedOut,
    UserCodeFailed,
    WorkerDied,
)
from batchcal.measure.children.probe import InterruptedAfterTraining, Probe, ProbeRequest
from batchcal.measure.outcomes import allowed_for, decides, detail, first_line, is_still_valid, within
from batchcal.measure.search.capacity import SizeRequest, Verdict
from batchcal.measure.search.settling import STEPS_BEFORE_EVALUATION, least_steps
from batchcal.values.calibration_events import CalibrationEvent, ProbeEnded, ProbeKept, ProbeStarted
from batchcal.values.setup import Setup
from batchcal.workload.data.in_flight import PREFETCH_FACTOR

ATTEMPTS: Final = 2
"""Maximum number of runs: a suspect, a kill from outside, a dead worker or an internal failure runs again, then it counts."""
INFORMATIVE: Final = 1.05
"""Ratio of an evaluation's peak to the memory that training left. Up to it, a run shows that the size fits, but not its
demand."""

_ProbedT = TypeVar("_ProbedT", ProbeEnded, ProbeKept)


@dataclass(frozen=True)
class SearchTarget:
    """Device, policy, mode and budget of a search."""

    device: str
    allocator: str
    mode: Mode
    budget_bytes: int
    samples: int
    train_batch: int | None = None
    """For `eval`: training micro-batch that runs before the evaluation, as in a training."""
    train_steps: int = STEPS_BEFORE_EVALUATION
    """For `eval`: number of training steps before the evaluation."""
    train_peak_bytes: int = 0
    """For `eval`: peak of these training steps."""
    num_workers: int = 0
    """DataLoader workers that deliver the batches."""
    start: Start | None = None
    """Start method of these workers. None: the default of the platform."""
    intra_op_threads: int = 1

    def setup(self, batch: int) -> Setup:
        """Return the settings of a process that runs `batch`."""
        is_training = self.mode == "train"
        return Setup(
            device=self.device,
            allocator=self.allocator,
            micro_batches=(batch if is_training else self.train_batch or 1,),
            eval_batch=0 if is_training else batch,
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH_FACTOR if self.num_workers else None,
            multiprocessing_context=self.start,
            intra_op_threads=self.intra_op_threads,
            interop_threads=1,
        )


@dataclass
class Attempts:
    """All runs of a calibration, in order."""

    probe: Probe
    progress: Progress[CalibrationEvent]
    keep: Callable[[Measurement], None]
    """Writes a measurement to disk before the next child starts."""
    past: tuple[Measurement, ...] = ()
    """Measurements of an interrupted calibration. They are part of this one and are not repeated."""
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: int = 0
    """Number of children started for a measurement."""
    _with_training: set[int] = field(default_factory=set)
    """Evaluations in the same process as a training, by `sequence`."""

    def __post_init__(self) -> None:
        # They keep their numbers: the journal has each number once, so a new run must not get the number of an old one.
        self.measurements.extend(self.past)

    def note(self, text: str) -> None:
        """Add a note for the reader of the calibration. A repeated text is ignored."""
        if text not in self.notes:
            self.notes.append(text)
            self.progress.event(Note(text))

    def run(
        self, request: SizeRequest, target: SearchTarget, *, deadline_s: float, one_size: bool = False, evaluation_steps: int = 0
    ) -> Measurement:
        """Run `request`. Repeat an inconclusive run once.

        Args:
            evaluation_steps: see `ProbeRequest`. `recall` returns the measurement of the evaluation.
        """
        measured = self._once(request, target, deadline_s, 1, one_size=one_size, evaluation_steps=evaluation_steps)
        for attempt in range(2, ATTEMPTS + 1):
            if decides(measured.outcome) or isinstance(measured.outcome, (TimedOut, UserCodeFailed)):
                break
            measured = self._once(request, target, deadline_s, attempt, one_size=one_size, evaluation_steps=evaluation_steps)
        return measured

    def recall(self, target: SearchTarget) -> list[Measurement]:
        """Return the earlier measurements of `target` that are valid under the current budget: those of an interrupted
        calibration, those within a margin that was doubled later, and evaluations in the process of a training."""
        recalled: list[Measurement] = []
        for old in self.measurements:
            same = (old.device, old.allocator, old.mode) == (target.device, target.allocator, target.mode)
            # A trial runs too few steps for its peak to settle.
            if same and old.phase != "refusal" and is_still_valid(old, target.budget_bytes):
                recalled.append(within(old, target.budget_bytes))
                if old.sequence not in self._with_training:
                    self.progress.event(_probe_event(ProbeKept, recalled[-1], target.budget_bytes))
        return recalled

    def verdict(self, measured: Measurement, best: int | None) -> tuple[Verdict, int | None]:
        """Return the verdict of an outcome about the size, and the demand in bytes of a complete run. Only memory moves a bound.

        Raises:
            UserCodeError: the task fails, and no size has worked yet.
        """
        outcome = measured.outcome
        match outcome:
            case Fits(peak=peak):
                begin_bytes = peak.begin_bytes if measured.mode == "eval" and measured.device == "cpu" else None
                demand_bytes = peak.bytes_on(measured.device)
                return "fits", demand_bytes if begin_bytes is None or demand_bytes > begin_bytes * INFORMATIVE else None
            case OutOfMemory():
                if outcome.source == "kernel":
                    self.note(f"the kernel's OOM killer fired at batch {measured.batch}, before the fence stopped the run")
                over_budget_peak = outcome.peak if outcome.source == "budget" else None
                return "too-big", over_budget_peak.bytes_on(measured.device) if over_budget_peak is not None else None
            case Suspect():
                self.note(
                    f"batch {measured.batch} crashed twice at {outcome.near_limit:.0%} of the memory that it may use "
                    f"({first_line(outcome.detail)}): it counts as out of memory, but it may be a bug in native code"
                )
                return "too-big", None
            case Swapping():
                return "too-big", None
            case UserCodeFailed():
                if best is None:
                    raise UserCodeError(outcome.error, known=(outcome.traceback or outcome.output).strip(), try_=outcome.hint)
                self.note(f"the task's own code refuses batch {measured.batch}: {outcome.error}")
                return "refused", None
            case WorkerDied():
                raise UserCodeError(
                    "a DataLoader worker died in both runs", known=outcome.detail, try_="--workers 0 shows the error itself"
                )
            case TimedOut() | KilledFromOutside() | Infrastructure():
                ending = outcome.kind.replace("-", " ") + (" " if isinstance(outcome, TimedOut) else ": ")
                self.note(f"batch {measured.batch}: inconclusive ({ending}{detail(outcome)})")
                return "unknown", None

    def _once(
        self,
        request: SizeRequest,
        target: SearchTarget,
        deadline_s: float,
        attempt: int,
        *,
        one_size: bool,
        evaluation_steps: int,
    ) -> Measurement:
        sequence = self._next_sequence()
        self.started += 1
        self.progress.event(
            ProbeStarted(
                sequence=sequence,
                phase=request.phase,
                mode=target.mode,
                batch=request.batch,
                predicted_bytes=request.predicted_bytes,
            )
        )
        allowed = allowed_for(target.budget_bytes)
        probe_request = ProbeRequest(
            setup=target.setup(request.batch),
            mode=target.mode,
            samples=target.samples,
            least_steps=least_steps(target.mode, request.mapped_share),
            allowed_bytes=allowed,
            budget_bytes=target.budget_bytes,
            train_steps=0 if target.train_batch is None else target.train_steps,
            evaluation_steps=evaluation_steps,
            predicted_bytes=max(request.predicted_bytes, target.train_peak_bytes),
            one_size=one_size,
            deadline_s=deadline_s,
        )
        interrupted: InterruptedAfterTraining | None = None
        try:
            report = self.probe.observe(probe_request)
        except InterruptedAfterTraining as error:
            report, interrupted = error.observation, error
        measured = Measurement(
            sequence=sequence,
            phase=request.phase,
            mode=target.mode,
            device=target.device,
            allocator=target.allocator,
            batch=request.batch,
            predicted_bytes=request.predicted_bytes,
            allowed_bytes=allowed,
            outcome=report.outcome,
            isolation=report.isolation,
            wall_s=report.wall_s,
            attempt=attempt,
            why=request.why,
        )
        self._add(measured, target)
        for text in report.notes:
            self.note(text)
        if interrupted is not None:
            raise interrupted
        if report.evaluation is not None:
            changes = {"sequence": self._next_sequence(), "phase": "scale", "mode": "eval", "outcome": report.evaluation}
            after = {"predicted_bytes": None, "wall_s": 0.0, "why": "in the same process, after the training"}
            evaluated = measured.model_copy(update={**changes, **after})
            self._with_training.add(evaluated.sequence)
            self._add(evaluated, target)
        return measured

    def _next_sequence(self) -> int:
        return max((measured.sequence for measured in self.measurements), default=0) + 1

    def _add(self, measured: Measurement, target: SearchTarget) -> None:
        self.measurements.append(measured)
        self.keep(measured)
        self.progress.event(_probe_event(ProbeEnded, measured, target.budget_bytes))


def _probe_event(kind: type[_ProbedT], measured: Measurement, budget_bytes: int) -> _ProbedT:
    outcome = measured.outcome
    peak = outcome.peak if isinstance(outcome, (Fits, OutOfMemory, Swapping)) else None
    return kind(
        sequence=measured.sequence,
        phase=measured.phase,
        mode=measured.mode,
        device=measured.device,
        allocator=measured.allocator,
        batch=measured.batch,
        outcome=outcome.kind,
        detail=detail(outcome),
        peak_bytes=peak.bytes_on(measured.device) if peak is not None else None,
        predicted_bytes=measured.predicted_bytes,
        budget_bytes=budget_bytes,
        samples_per_s=outcome.samples_per_s if isinstance(outcome, Fits) else None,
        wall_s=round(measured.wall_s, 3),
    )
