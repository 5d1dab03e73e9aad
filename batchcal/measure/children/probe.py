"""Probe: measures one batch size once, in a child. The interface for the search and the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchcal.calibration.records.command import CommandRecord
from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.schema import Isolation, Mode
from batchcal.core.errors import Interrupted, UserCodeError
from batchcal.core.values import Frozen
from batchcal.guard.outcome import Outcome
from batchcal.measure.heap.trial import HeapReport, HeapRequest
from batchcal.measure.search.settling import LEAST_STEPS, STEPS_BEFORE_EVALUATION
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest
from batchcal.plan.plan import Plan
from batchcal.values.setup import Setup
from batchcal.workload.facts import TaskFacts


class SizeRefused(UserCodeError):
    """The user's code failed in the tiny steps of an examination. Another size may run."""


class ProbeRequest(Frozen):
    """Batch size to run in one child, and its limits."""

    setup: Setup
    """Settings of the process. For `train`, its micro-batch is the batch to run. For `eval`, its evaluation batch is, after
    `train_steps` steps at its micro-batch."""
    mode: Mode
    samples: int
    """Maximum number of steps. The run ends earlier once the peak has settled."""
    least_steps: int = LEAST_STEPS["train"]
    """Minimum number of steps before a peak counts as settled."""
    allowed_bytes: int
    """Memory of the complete process tree at which the fence stops the child, bytes."""
    budget_bytes: int
    """A run that ends above this budget is out of memory with source `budget`."""
    train_steps: int = STEPS_BEFORE_EVALUATION
    """For `eval`: number of training steps before the evaluation, as in a training."""
    evaluation_steps: int = 0
    """For `train`: minimum number of steps of an evaluation with the same batch, after the training. 0: do not evaluate."""
    predicted_bytes: int | None = None
    """Expected peak. None: unknown."""
    one_size: bool = False
    """The process runs no other size, not even in the warm-up."""
    deadline_s: float | None = None
    """Time limit of the measured steps, seconds. Loading and warm-up have their own limits."""

    @property
    def device(self) -> str:
        return self.setup.device

    @property
    def allocator(self) -> str:
        return self.setup.allocator

    @property
    def batch(self) -> int:
        """Batch to measure, samples."""
        return self.setup.micro_batches[0] if self.mode == "train" else self.setup.eval_batch

    @property
    def train_batch(self) -> int | None:
        """Training micro-batch that runs before an evaluation. None: none does."""
        return self.setup.micro_batches[0] if self.mode == "eval" and self.train_steps else None

    def evaluation(self) -> ProbeRequest:
        """Return the request for the evaluation after this training."""
        setup = self.setup.model_copy(update={"eval_batch": self.batch})
        changes = {"mode": "eval", "setup": setup, "least_steps": self.evaluation_steps, "evaluation_steps": 0}
        return self.model_copy(update=changes)


class PlanTimes(Frozen):
    """Further measurements of a plan that fits."""

    wait_share: float
    """Share of a step spent waiting for the batch."""
    foreign_share: float | None = None
    """Same as in `StepTime`."""
    eval_samples_per_s: tuple[float, ...]
    """Samples per second for each requested size."""
    last_group_error: str = ""
    """Error of the task's own code in the last, smaller group of an epoch. Empty: the group ran, or there is none."""


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
    evaluation: Outcome | None = None
    """Outcome of the evaluation after a training that fits. None: it was not requested, or it did not begin."""
    notes: tuple[str, ...] = ()
    """Notes for the reader of the calibration."""


class InterruptedAfterTraining(Interrupted):
    """A signal stopped the evaluation of a probe. Its training is complete."""

    def __init__(self, error: Interrupted, observation: Observation) -> None:
        super().__init__(error.signal_number, error.what, known=error.known, try_=error.try_)
        self.observation = observation


class Examination(Frozen):
    """Facts of the task, its static shapes, and the memory of a tiny step, measured in a child without a real batch."""

    facts: TaskFacts
    base_bytes: int
    """Memory after a tiny training step, including the optimizer state, bytes."""
    base_accelerator_bytes: int | None
    shapes: dict[Mode, tuple[ShapePoint, ...]]
    samples_per_s: float
    """Rate of a small batch, to predict the duration of a first probe."""
    shape_source: str
    """`fake-tensor`, `profiler` or `batch-bytes`."""
    shapes_change: bool | None = False
    """True if random batches of one size have tensors of different shapes. None: unknown."""
    refused: tuple[int, ...] = ()
    """Small sizes at which the user's code failed in the process that had run a tiny batch before."""
    notes: tuple[str, ...] = ()
    promises: tuple[PromiseCheck, ...] = ()
    """Checks of the promises of the task."""
    command: CommandRecord | None = None
    """Observations of a command. None: a task."""
    most_batch: int | None = None
    """Largest batch of which the data gives enough steps to measure. None: no such limit."""
    evaluates: bool = True
    """False: evaluation batches cannot be set, so none is searched."""

    @property
    def device_base_bytes(self) -> int:
        """Memory of the device after a tiny training step, bytes."""
        return self.base_bytes if self.base_accelerator_bytes is None else self.base_accelerator_bytes


class TimingRequest(Frozen):
    """Micro-batches to time in one child."""

    device: str
    allocator: str
    micro_batches: tuple[int, ...]
    """Sizes in ascending order: a smaller size must not use the heap that a larger one leaves."""
    threads: tuple[int, ...] = ()
    """Numbers of intra-op threads to time each size with. Empty: the number of every child."""
    rounds: int = 0
    """0: time each size once. Else: race the sizes, each once per round, in at most this many rounds
    (see `Race`). A slow period of several seconds then affects all sizes alike. This is for allocators that keep their memory: a
    size after a larger one then has the same heap as in a training."""
    complete: bool = False
    """Time all sizes. False: two sizes in a row that are slower end the timing."""
    samples: int | None = None
    """Number of samples to time each size over, to the nearest step, the same for timings that are compared. None: as many as the
    first size processes in a fraction of a second."""
    allowed_bytes: int
    """Memory at which the fence stops the child, bytes."""
    limit_s: float
    """Seconds after which no further size starts."""


class TimingReport(Frozen):
    times: tuple[StepTime, ...]
    """Times in the order of the runs. There are fewer than requested if the timing ended early; `why_ended` gives the reason."""
    why_ended: str = ""


class RehearsalRequest(Frozen):
    """Plan to run exactly as in the training."""

    plan: Plan
    micro_batches: tuple[int, ...]
    """Micro-batches of each optimizer step: those of the plan, or as many of them as there is time for."""
    eval_batches: tuple[int, ...] = ()
    """Sizes to evaluate with. The size of the plan comes last."""
    worst_case: bool = False
    """Run groups of the largest samples first, to measure the peak."""
    keep_activations: bool = False
    """Run without activation checkpointing, although the calibration is for a training with it."""
    allowed_bytes: int
    """Memory at which the fence stops the child, bytes."""
    budget_bytes: int
    least_s: float
    """Minimum duration of the timed groups, seconds. At least one group is timed."""
    limit_s: float
    """Seconds after which no further group starts."""


class Probe(Protocol):
    """Interface for measurements. Effects of the machine or the user's code on a probe do not raise an error, internal failures
    do."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Load the task once, before the first probe.

        Raises:
            UserCodeError, UsageError: the task cannot be loaded or its first step fails; SizeRefused if another size may run.
            NothingFits: even a tiny step needs more memory than there is.
        """
        ...

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        """Run a step at each of `sizes` in one process, while time is left. Return the sizes that ran. Never raise for task
        errors."""
        ...

    def set_size_rule(self, rule: SizeRule) -> None:
        """From now on, use sizes of `rule` for warm-ups, tiny batches and static curves."""
        ...

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        """Run one batch size, or a complete plan, in a child."""
        ...

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Announce that `prepare` with the same arguments will probably follow the next examination. Processes that it needs may
        start during the examination, once its steps have been timed."""
        ...

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Prepare to time runs of up to `demand_bytes` under each of `allocators`, alternately. Processes that they need may
        start in advance."""
        ...

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        """Time micro-batches. A size that cannot run is left out, and the report gives the reason."""
        ...

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        """Start DataLoader workers once. Check that they return the same samples as the process, and measure their memory."""
        ...

    def train_varied(self, request: HeapRequest) -> HeapReport:
        """Train with random batches and read the peak during the steps. Never raise for task errors."""
        ...

    def close(self) -> None: ...
