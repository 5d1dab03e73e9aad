"""Probe: measures one batch size once, in a child. The interface that the search and the calibration know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchcal.calibration.memory_model import ShapePoint
from batchcal.calibration.promises import PromiseCheck
from batchcal.calibration.schema import Isolation, Mode
from batchcal.calibration.size_rule import SizeRule
from batchcal.calibration.speed import StepTime
from batchcal.core.errors import UserCodeError
from batchcal.core.values import Frozen
from batchcal.guard.outcome import Outcome
from batchcal.measure.heap.trial import HeapReport, HeapRequest
from batchcal.measure.search.settling import LEAST_STEPS, STEPS_BEFORE_EVALUATION
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest
from batchcal.plan.plan import Plan
from batchcal.workload.facts import TaskFacts


class SizeRefused(UserCodeError):
    """The user's code failed in the tiny steps of an examination: another size may run."""


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
    one_size: bool = False
    """The process runs no other size, in the warm-up neither."""
    deadline_s: float | None = None
    """For the measured steps, seconds. Loading and warming up have limits of their own."""


class PlanTimes(Frozen):
    """What else was learned of a plan that fits."""

    wait_share: float
    """Of a step: waiting for the batch."""
    foreign_share: float | None = None
    """See `StepTime`."""
    eval_samples_per_s: tuple[float, ...]
    """By size that was asked for."""
    last_group_error: str = ""
    """How the last, smaller group of an epoch failed: an error of the task's own code. Empty: it ran, or there is none."""


class Observation(Frozen):
    """Result of one probe."""

    outcome: Outcome
    """For a plan, `Fits.samples_per_s` is the mean over complete optimizer steps and `step_s` the seconds of one step."""
    isolation: Isolation
    wall_s: float
    times: PlanTimes | None = None
    """Times of a plan that fits."""
    evaluating: bool = False
    """For a plan: an evaluation failed, not a training step."""
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
    shapes_change: bool | None = False
    """Whether random batches of one size have tensors of different shapes. None: unknown."""
    refused: tuple[int, ...] = ()
    """Small sizes at which the user's code failed in the process that had run a tiny batch before."""
    notes: tuple[str, ...] = ()
    promises: tuple[PromiseCheck, ...] = ()
    """Checks of what the task promises."""


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


class Probe(Protocol):
    """Measures. Never raises for what the machine or the user's code did to a probe; raises for what we could not do."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Loads the task once, before the first probe.

        Raises:
            UserCodeError, UsageError: the task cannot be loaded or its first step fails; SizeRefused where another size may run.
            NothingFits: even a tiny step needs more memory than there is.
        """
        ...

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        """Those of `sizes` at which a step ran, all in one process, as many as there is time for. Never raises for the task."""
        ...

    def obey(self, rule: SizeRule) -> None:
        """From now on warm-ups, tiny batches and static curves use sizes of `rule`."""
        ...

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        """Run one batch size, or a complete plan, in a child."""
        ...

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """What needs up to `demand_bytes` is about to be timed under each of `allocators`, in turn: what it takes to start may be
        there before."""
        ...

    def lap(self, request: LapRequest) -> LapReport:
        """Times micro-batches. What cannot be run is left out, and says so."""
        ...

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        """Starts DataLoader workers once: whether they return the samples of the process, and what they come to hold. What is
        measured later with a number of workers that the user asked for starts them in the way that this found."""
        ...

    def train_varied(self, request: HeapRequest) -> HeapReport:
        """Trains with random batches and reads the peak as steps go by. Never raises for the task."""
        ...

    def close(self) -> None: ...
