"""Probe: measures one batch size once, in a child. The interface that the search and the calibration know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchcal.calibration.memory_model import ShapePoint
from batchcal.calibration.schema import Isolation, Mode
from batchcal.calibration.speed import StepTime
from batchcal.core.values import Frozen
from batchcal.guard.outcome import Outcome
from batchcal.measure.search.settling import LEAST_STEPS, STEPS_BEFORE_EVALUATION
from batchcal.plan.plan import Plan
from batchcal.workload.facts import TaskFacts


class ProbeRequest(Frozen):
    """What one child is to run."""

    batch: int
    mode: Mode
    device: str
    allocator: str
    samples: int
    """Steps at most; ends earlier once the peak stands still."""
    least_steps: int = LEAST_STEPS["train"]
    """Steps at least, before a peak is said to stand still."""
    allowed_bytes: int
    """Demand at which the fence is armed (the whole process tree)."""
    budget_bytes: int
    """A run that ends above this is out of memory with source `budget`."""
    train_batch: int | None = None
    """For `eval`: the training micro-batch that is run first, as in a training."""
    train_steps: int = STEPS_BEFORE_EVALUATION
    """For `eval`: so many steps of it."""
    deadline_s: float | None = None
    """For the measured steps, seconds. Loading and warming up have limits of their own."""


class ProbeReport(Frozen):
    outcome: Outcome
    isolation: Isolation
    wall_s: float
    notes: tuple[str, ...] = ()
    """What the reader of the calibration should know of it."""


class Examination(Frozen):
    """What a child learned about the task without a real batch: the facts, the static shapes, what a tiny step holds."""

    facts: TaskFacts
    base_bytes: int
    """Demand after a tiny training step, optimizer state present."""
    base_accelerator_bytes: int | None
    shapes: dict[Mode, tuple[ShapePoint, ...]]
    samples_per_s: float
    """Of a small batch: what a first probe may be expected to take."""
    shape_source: str
    """`fake-tensor`, `profiler` or `batch-bytes`."""
    notes: tuple[str, ...] = ()


class LapRequest(Frozen):
    """Micro-batches to time in one child."""

    device: str
    allocator: str
    micro_batches: tuple[int, ...]
    """By rising size: the heap that a larger one leaves must not serve a smaller one."""
    threads: tuple[int, ...] = ()
    """Intra-op threads to time each size with; none: those of every child."""
    rounds: int = 0
    """0: each size once, and the fastest once more. Else they are raced against each other, each once a round, in so many rounds
    at most (see `Race`): what is slow for seconds on end then meets all alike. For allocators that keep what they have, where a
    size that comes after a larger one finds the heap that a training finds, too."""
    samples: int | None = None
    """That every size is timed over, at least; the same for laps that are compared. None: what the first size does in a fraction
    of a second."""
    allowed_bytes: int
    """Demand at which the fence is armed."""
    limit_s: float
    """No size is begun after so many seconds."""


class LapReport(Frozen):
    times: tuple[StepTime, ...]
    """In the order in which they ran; fewer than asked for where the lap ended before, as `why_ended` says."""
    why_ended: str = ""


class RehearsalRequest(Frozen):
    """A plan to run as it will train."""

    plan: Plan
    micro_batches: tuple[int, ...]
    """Of each optimizer step: the plan's, or as many of them as there is time for."""
    eval_batches: tuple[int, ...] = ()
    """Sizes to evaluate with; the plan's own comes last."""
    worst_case: bool = False
    """Whether groups of the largest samples are run before: for the peak."""
    keep_activations: bool = False
    """Without activation checkpointing, though the calibration is for a training with it."""
    allowed_bytes: int
    """Demand at which the fence is armed."""
    budget_bytes: int
    least_s: float
    """Groups are timed for so long at least, and one in any case."""
    limit_s: float
    """No group is begun after so many seconds."""


class RehearsalTimes(Frozen):
    """What else was learned of a plan that fits."""

    wait_share: float
    """Of a step: waiting for the batch."""
    foreign_share: float | None = None
    """See `StepTime`."""
    eval_samples_per_s: tuple[float, ...]
    """By size that was asked for."""


class RehearsalReport(Frozen):
    outcome: Outcome
    """`Fits.samples_per_s` is that of whole optimizer steps, in the mean; `step_s` seconds of one."""
    times: RehearsalTimes | None
    """None: it did not fit."""
    evaluating: bool = False
    """Whether it was an evaluation that needed too much, or that ended it."""
    wall_s: float


class Probe(Protocol):
    """Measures. Never raises for what the machine or the user's code did to a probe; raises for what we could not do."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Loads the task once, before the first probe.

        Raises:
            UserCodeError, UsageError: the task cannot be loaded or its first step fails.
            NothingFits: even a tiny step needs more memory than there is.
        """
        ...

    def measure(self, request: ProbeRequest) -> ProbeReport: ...

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """What needs up to `demand_bytes` is about to be timed under each of `allocators`, in turn: what it takes to start may be
        there before."""
        ...

    def lap(self, request: LapRequest) -> LapReport:
        """Times micro-batches. What cannot be run is left out, and says so."""
        ...

    def rehearse(self, request: RehearsalRequest) -> RehearsalReport:
        """Runs a whole plan."""
        ...

    def close(self) -> None: ...
