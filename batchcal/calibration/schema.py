"""Schema of calibration.json: measurements of a task on a machine, and the results.

A reader never fills in a missing fact from its own machine: today's machine may not be the one that was measured.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from batchcal.calibration.records.command import CommandRecord
from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.records.pipeline import PipelineResult
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.rehearsal import Attribution, Finals, Rehearsal, SizeRace
from batchcal.calibration.records.setup_runs import SetupRuns
from batchcal.calibration.records.shape import ShapeEstimate
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import Speeds
from batchcal.calibration.records.time_slices import TimeSlice
from batchcal.calibration.records.undone import Undone
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.core.values import Record
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Outcome
from batchcal.values.settings import Objective
from batchcal.workload.facts import TaskFacts
from batchcal.workload.spec.identity import TaskIdentity

# Format history
# 1 - (0.1) first version
# 2 - (0.1) `undone` names its parts; before, it held sentences. Optional fields are added without a new number
FORMAT: Final = 2
TIME_TO_LIVE: Final = timedelta(days=7)

BatchSize = Annotated[int, Field(ge=1, le=2**31)]
"""Samples in a micro-batch. No measurement has a size outside this range."""
Fraction = Annotated[float, Field(ge=0, lt=1)]

Mode = Literal["train", "eval"]
SearchPhase = Literal["profile", "scale", "verify", "expand", "bisect", "eval", "confirm", "refusal"]
"""`profile`: tiny batches; `scale`: about half the expected cap. Three phases follow: `verify` the cap, `expand` below the
headroom threshold, `bisect` after a miss. `refusal`: two steps at a size near one that the user's code refused."""
LimitedBy = Literal[
    "memory",
    "accelerator-memory",
    "shm",
    "dataset",
    "max-batch",
    "model",
    "speed",
    "time-limit",
    "max-probes",
    "measuring-overhead",
]
"""`speed`: a larger batch is of no use for speed, so none was run. It is not faster, or the effective batch is no larger."""


OFF: Final = "off"


class Options(Record):
    """Requested options, and values that change the result. Part of the fingerprint."""

    margin: Fraction
    """Fraction of the host's memory limit to leave free."""
    accelerator_margin: Fraction = 0.10
    """Fraction of an accelerator's memory to leave free."""
    headroom: Annotated[float, Field(ge=0, le=1)]
    """Fraction of the budget. The search expands while the peak is below it."""
    memory_limit_bytes: int | None
    samples: int
    """Maximum number of steps per probe (by memory tier, or as requested)."""
    max_batch: BatchSize | None
    multiple_of: BatchSize
    device: str
    """As requested: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    allocator: str
    activation_checkpointing: str = OFF
    """`off`, `auto` or names of modules. The backward pass recomputes the activations of these modules, in training too."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None
    """None: batchcal chooses the number. It then measures memory without workers."""
    effective_batch: BatchSize | None
    seed: int
    time_limit_s: float
    max_probes: int | None
    objective: Objective = "throughput"
    """Objective of the plan that is rehearsed. The fingerprint leaves out time_limit_s, max_probes, effective_batch, objective,
    accept_inexact, min_micro_batch and seed."""
    accept_inexact: bool = False
    """True: the user accepts that dividing a batch changes its gradient by the mismatch in `promises`."""
    min_micro_batch: BatchSize | None = None
    """Smallest micro-batch of a divided batch, samples. None: 16 for models with batch statistics, else 1."""


class Budget(Record):
    """Bytes that the training may use on one device: limit - others - margin - reserved."""

    device: str
    limit_bytes: int
    others_bytes: int
    """Memory of other processes at the start, without batchcal's own processes."""
    margin_bytes: int
    budget_bytes: int
    learned_from: str
    reserved_bytes: int = 0
    """Reserve for the growth of the training by the end of an epoch: samples that the dataset keeps, and growth of the workers
    that the user requested. Not part of `budget_bytes`."""


class Isolation(Record):
    """Isolation of a measurement from the rest of the container."""

    launcher: Literal["zygote", "spawn", "fake"]
    fence: tuple[str, ...]
    """Layers that were in force, such as `prediction`, `rlimit-data`, `watchdog`, `oom-score`, `deadline`."""
    missing: tuple[str, ...] = ()


class Measurement(Record):
    """One probe."""

    sequence: int
    phase: SearchPhase
    mode: Mode
    device: str
    allocator: str
    batch: BatchSize
    predicted_bytes: int | None
    """Memory predicted before the run, bytes."""
    allowed_bytes: int | None
    """Memory at which the fence stops the child, bytes."""
    outcome: Outcome
    isolation: Isolation
    wall_s: float
    attempt: int = 1
    why: str = ""
    """Reason for this size."""


class Capacity(Record):
    """The largest micro-batch that was run within the budget."""

    batch: BatchSize
    peak_bytes: int
    samples_per_s: float
    measured_by: int
    """`sequence` of the measurement that ran it. 0: a rehearsal ran it."""
    limited_by: LimitedBy
    undone: str = ""
    """Trials that a longer search would still have run."""
    ruled_out: BatchSize | None = None
    """Smallest micro-batch that fitted in probes but ran out of memory in a rehearsal. None: no rehearsal ran out of memory."""
    accumulated: bool = False
    """True: it ran with the gradients of an earlier micro-batch in memory, as in accumulation. False: a plan that accumulates
    must add them."""

    @property
    def answers_memory(self) -> bool:
        """True if larger sizes were tried as far as memory and time allowed, so that it is the answer to `--objective memory`."""
        return self.limited_by != "speed"


def usable_bytes(budget_bytes: int, base_bytes: float, heap_growth: float) -> int:
    """Memory that a few steps may use of a budget if a batch takes `heap_growth` times as much after many steps, bytes.

    Args:
        base_bytes: memory of the process without a batch.
    """
    return budget_bytes - int(max(0.0, budget_bytes - base_bytes) * (1 - 1 / heap_growth))


class Finding(Record):
    """Results for one device under one allocator policy."""

    device: str
    allocator: str
    train: Capacity
    eval: Capacity | None
    train_memory: MemoryModel
    eval_memory: MemoryModel | None
    heap_growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Memory of a batch after many steps, divided by its memory after a few steps. The heap grows if batches change their shapes.
    Peaks and memory models are those of a few steps."""

    def usable_bytes(self, budget_bytes: int) -> int:
        """Memory that a few steps may use of a budget so that many steps stay within it, bytes."""
        return usable_bytes(budget_bytes, self.train_memory.base_bytes, self.heap_growth)

    def grown_bytes(self, peak_bytes: int) -> int:
        """Peak after many steps of a training whose peak is `peak_bytes` after a few steps, bytes."""
        return peak_bytes + int(max(0.0, peak_bytes - self.train_memory.base_bytes) * (self.heap_growth - 1))


class Fingerprint(Record):
    """Values that must be equal for the calibration to be valid. Each is a sha256, compared separately to report the reason."""

    cpu: str
    os: str
    python: str
    torch: str
    accelerator: str
    task: str
    options: str
    memory_limit_bytes: int
    """Compared with a tolerance of 2 %."""
    allocators: dict[str, str] = {}
    """sha256 of the library of each measured policy that has a library, by name of the policy. A listed library that has changed
    or is gone is a reason to measure again. A library that is not listed is not a reason."""


class Calibration(Record):
    kind: Literal["calibration"] = "calibration"
    format: int = FORMAT
    batchcal: str
    """Version that wrote the file."""
    created_at: AwareDatetime
    expires_at: AwareDatetime
    status: Literal["complete", "unsettled", "partial", "predicted"]
    """`unsettled`: verified, but the time or the probes ran out before the search ended; `partial`: nothing is verified yet;
    `predicted`: a dry run with assumed measurements."""
    environment: Environment
    task: TaskIdentity
    facts: TaskFacts | None
    options: Options
    fingerprint: Fingerprint
    budgets: tuple[Budget, ...]
    measurements: tuple[Measurement, ...]
    setups: tuple[SetupRuns, ...] = ()
    """`measurements` by setup. Empty: not recorded before format 2."""
    findings: tuple[Finding, ...]
    chosen_device: str
    effective_batch: BatchSize | None
    """Requested by flag or in `[plan]`. None: the capacity."""
    undone: tuple[Undone, ...] = ()
    unanswered: tuple[Objective, ...] | None = None
    """Objectives that plans of this calibration may not meet: `throughput` without a race of threads and workers, `memory`
    without a capacity, or with one that is limited by speed. None: not recorded before format 2."""
    world_size: Annotated[int, Field(ge=1)] = 1
    """Processes that trained together in each run."""
    wall_s: float = 0.0
    time_slices: tuple[TimeSlice, ...] = ()
    """Duration of each part of `wall_s`. Empty: not recorded before format 2."""
    notes: tuple[str, ...] = ()
    allocator: str | None = None
    """Policy that the race of policies chose. None: there was no race, and the requested policy applies."""
    speeds: tuple[Speeds, ...] = ()
    """Results of the policies in the race."""
    finals: tuple[Finals, ...] = ()
    """The races of threads and workers."""
    sizes: tuple[SizeRace, ...] = ()
    """The races of micro-batches."""
    rehearsals: tuple[Rehearsal, ...] = ()
    """Complete runs of plans."""
    attribution: Attribution | None = None
    """Gain of the plan that was rehearsed first over PyTorch's defaults."""
    shapes: tuple[ShapeEstimate, ...] = ()
    """Requested shapes of the model, the task's own first: `calibrate --shape`."""
    promises: tuple[PromiseCheck, ...] = ()
    """Checks of the task's promises. Empty: written before batchcal checked promises, or nothing was examined."""
    loader_workers: LoaderWorkers | None = None
    """Rules for every plan with workers. None: workers were not tried."""
    size_rule: SizeRule | None = None
    """Rule of the batch sizes that the task accepts, if it refused sizes by one. None: it accepted all sizes that were tried."""
    command: CommandRecord | None = None
    """The command that was measured. None: a task."""
    pipeline: PipelineResult | None = None
    """The input pipeline, if it was measured: `calibrate --pipeline-only`."""

    @property
    def obeyed(self) -> SizeRule:
        """Rule for every size that batchcal chooses: the rule of the task, else `--multiple-of`."""
        multiple = self.options.multiple_of
        return self.size_rule or SizeRule(multiple_of=multiple, least=multiple)

    @property
    def policy(self) -> str:
        """Allocator policy of a plan, unless the caller requests another."""
        return self.allocator or self.options.allocator

    @property
    def is_usable(self) -> bool:
        """True if a plan can be made from this calibration."""
        return self.status not in ("partial", "predicted") and self.finding() is not None

    def finding(self, *, device: str | None = None, allocator: str | None = None) -> Finding | None:
        """Return the finding for `device` (default: the chosen device; `cuda` is the first of its kind) under `allocator`
        (default: the `policy`)."""
        policy = allocator or self.policy
        return next(
            (result for result in self.findings if self._matches(result.device, device) and result.allocator == policy), None
        )

    def speeds_of(self, finding: Finding) -> Speeds | None:
        """Return the result of the policy of `finding` on its device in the race. None: it was not timed."""
        place = (finding.device, finding.allocator)
        return next((speeds for speeds in self.speeds if (speeds.device, speeds.allocator) == place and speeds.times), None)

    def finals_of(self, finding: Finding) -> Finals | None:
        """Return the race of threads and workers on the device of `finding`, under its policy if possible. None: no race ran."""
        on_device = [finals for finals in self.finals if finals.device == finding.device]
        return next(
            (finals for finals in on_device if finals.allocator == finding.allocator), on_device[0] if on_device else None
        )

    def sizes_of(self, finding: Finding) -> SizeRace | None:
        """Return the race of micro-batches on the device of `finding` under its policy. None: no race ran."""
        place = (finding.device, finding.allocator)
        return next((race for race in self.sizes if (race.device, race.allocator) == place), None)

    def budget(self, device: str | None = None) -> Budget | None:
        """Return the budget of `device` (default: the chosen device)."""
        return next((budget for budget in self.budgets if self._matches(budget.device, device)), None)

    def device_of(self, requested: str | None) -> str:
        """Return the measured device that matches `requested` (None: the chosen device). If none matches, return `requested`."""
        return next(
            (budget.device for budget in self.budgets if self._matches(budget.device, requested)), requested or self.chosen_device
        )

    def _matches(self, device: str, requested: str | None) -> bool:
        name = requested or self.chosen_device
        return device == name or device.partition(":")[0] == name
