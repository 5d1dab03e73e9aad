"""calibration.json: what was measured, on what machine, of what task, and what follows from it.

A record never borrows from its reader: a missing fact is missing, today's machine is not yesterday's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from batchcal.calibration.memory_model import MemoryModel
from batchcal.calibration.pipeline import PipelineResult
from batchcal.calibration.promises import PromiseCheck
from batchcal.calibration.rehearsal import Attribution, Finals, Rehearsal, SizeRace
from batchcal.calibration.setup_runs import SetupRuns
from batchcal.calibration.shape import ShapeEstimate
from batchcal.calibration.size_rule import SizeRule
from batchcal.calibration.speed import Speeds
from batchcal.calibration.time_slices import TimeSlice
from batchcal.calibration.undone import Undone
from batchcal.calibration.workers import LoaderWorkers
from batchcal.core.values import Record
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Outcome
from batchcal.values.settings import Objective
from batchcal.workload.facts import TaskFacts
from batchcal.workload.identity import TaskIdentity

# Format history
# 1 - (0.1) first version
# 2 - (0.1) `undone` names its parts, where it held sentences. Optional fields come without a new number
FORMAT: Final = 2
TIME_TO_LIVE: Final = timedelta(days=7)

BatchSize = Annotated[int, Field(ge=1, le=2**31)]
"""Samples in a micro-batch. A size out of this range was not measured by anybody."""
Fraction = Annotated[float, Field(ge=0, lt=1)]

Mode = Literal["train", "eval"]
SearchPhase = Literal["profile", "scale", "verify", "expand", "bisect", "eval", "confirm", "refusal"]
"""`profile`: tiny batches; `scale`: about half the expected cap; then the three phases: `verify` the cap, `expand` under the
headroom threshold, `bisect` after a miss; `refusal`: two steps at a size near one that the user's code refused."""
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
"""`speed`: of evaluation, which ends growing where a larger batch is no faster."""


OFF: Final = "off"


class Options(Record):
    """What the user asked for and what changes the answer. Part of the fingerprint."""

    margin: Fraction
    """Fraction of the host's limit that is left alone."""
    accelerator_margin: Fraction = 0.10
    """The same of an accelerator's memory."""
    headroom: Annotated[float, Field(ge=0, le=1)]
    """Under this fraction of the budget expansion goes on."""
    memory_limit_bytes: int | None
    samples: int
    """Steps per probe at most (by memory tier, or as asked)."""
    max_batch: BatchSize | None
    multiple_of: BatchSize
    device: str
    """As asked: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    allocator: str
    activation_checkpointing: str = OFF
    """`off`; `auto` or names of modules: what they compute is computed again in the backward pass, in training too."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None
    """None: to be found. Memory is then measured without."""
    effective_batch: BatchSize | None
    seed: int
    time_limit_s: float
    max_probes: int | None
    objective: Objective = "throughput"
    """What the plan that is rehearsed is for. time_limit_s, max_probes, effective_batch, objective, accept_inexact,
    min_micro_batch and seed do not enter the fingerprint."""
    accept_inexact: bool = False
    """The user accepts that dividing a batch changes its gradient, by the mismatch that `promises` holds."""
    min_micro_batch: BatchSize | None = None
    """Least micro-batch of a divided batch, in samples. None: 16 for models with batch statistics, else 1."""


class Budget(Record):
    """Bytes that the training may use on one device: limit - others - margin - reserved."""

    device: str
    limit_bytes: int
    others_bytes: int
    """Used by others when we began, batchcal's own processes left out."""
    margin_bytes: int
    budget_bytes: int
    learned_from: str
    reserved_bytes: int = 0
    """Kept for what the training comes to hold by the end of an epoch: samples that the dataset keeps, and the growth of the
    workers that the user asked for. Not in `budget_bytes`."""


class Isolation(Record):
    """How a measurement was kept away from the rest of the container."""

    launcher: Literal["zygote", "spawn", "fake"]
    fence: tuple[str, ...]
    """The layers that were really in force, such as `prediction`, `rlimit-data`, `watchdog`, `oom-score`, `deadline`."""
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
    """Demand predicted before it ran."""
    allowed_bytes: int | None
    """Demand at which the fence was armed."""
    outcome: Outcome
    isolation: Isolation
    wall_s: float
    attempt: int = 1
    why: str = ""
    """Why this size was asked."""


class Capacity(Record):
    """The largest micro-batch that was run within the budget."""

    batch: BatchSize
    peak_bytes: int
    samples_per_s: float
    measured_by: int
    """`sequence` of the measurement that ran it. 0: a rehearsal ran it."""
    limited_by: LimitedBy
    undone: str = ""
    """What a longer search would still have tried."""
    ruled_out: BatchSize | None = None
    """The smallest micro-batch that probes fitted and whose rehearsal ran out of memory. None: no rehearsal did."""
    accumulated: bool = False
    """True: it was run with the gradients of an earlier micro-batch alive, as accumulation has them. False: a plan that
    accumulates must add them."""


def usable_bytes(budget_bytes: int, base_bytes: float, heap_growth: float) -> int:
    """What a few steps may hold of a budget where the batch takes `heap_growth` times as much after many.

    Args:
        base_bytes: what the process holds without a batch.
    """
    return budget_bytes - int(max(0.0, budget_bytes - base_bytes) * (1 - 1 / heap_growth))


class Finding(Record):
    """What is known for one device under one allocator policy."""

    device: str
    allocator: str
    train: Capacity
    eval: Capacity | None
    train_memory: MemoryModel
    eval_memory: MemoryModel | None
    heap_growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """How many times as much memory a batch takes after many steps as after a few: the heap grows where batches change their
    shapes. Peaks and memory models are those of a few steps."""

    def usable_bytes(self, budget_bytes: int) -> int:
        """What a few steps may hold of a budget, so that many steps stay within it."""
        return usable_bytes(budget_bytes, self.train_memory.base_bytes, self.heap_growth)

    def grown_bytes(self, peak_bytes: int) -> int:
        """The peak after many steps, of a training whose peak is `peak_bytes` after a few."""
        return peak_bytes + int(max(0.0, peak_bytes - self.train_memory.base_bytes) * (self.heap_growth - 1))


class Fingerprint(Record):
    """What must be the same for the calibration to hold. Each a sha256, compared part by part so that the reason is known."""

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
    """By name of the policy that was measured: sha256 of its library, where it has one. One that is in here and is gone or
    changed today is a reason to measure again; one of today that is not in here is none."""


class Calibration(Record):
    kind: Literal["calibration"] = "calibration"
    format: int = FORMAT
    batchcal: str
    """Version that wrote it."""
    created_at: AwareDatetime
    expires_at: AwareDatetime
    status: Literal["complete", "unsettled", "partial", "predicted"]
    """`unsettled`: verified, but time or probes ended before the search did; `partial`: nothing verified yet; `predicted`: a dry
    run, whose measurements are assumed."""
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
    """Asked for, by flag or by `[plan]`; None: the capacity."""
    undone: tuple[Undone, ...] = ()
    unanswered: tuple[Objective, ...] | None = None
    """Objectives that no plan of it is sure to serve: `throughput` without a race of threads and workers, `memory` without a
    capacity. None: not recorded before format 2."""
    world_size: Annotated[int, Field(ge=1)] = 1
    """Processes that trained together in each run."""
    wall_s: float = 0.0
    time_slices: tuple[TimeSlice, ...] = ()
    """What of it each part took. Empty: not recorded before format 2."""
    notes: tuple[str, ...] = ()
    allocator: str | None = None
    """The policy that the race of policies chose; None: none was raced, the one asked for holds."""
    speeds: tuple[Speeds, ...] = ()
    """What the policies achieved in the race."""
    finals: tuple[Finals, ...] = ()
    """The races of threads and workers."""
    sizes: tuple[SizeRace, ...] = ()
    """The races of micro-batches."""
    rehearsals: tuple[Rehearsal, ...] = ()
    """Plans that were run whole."""
    attribution: Attribution | None = None
    """What the plan that was rehearsed first gains over PyTorch's defaults."""
    shapes: tuple[ShapeEstimate, ...] = ()
    """Shapes of the model that were asked about, the task's own first: `calibrate --shape`."""
    promises: tuple[PromiseCheck, ...] = ()
    """Checks of what the task promises. Empty: written before batchcal checked promises, or nothing was examined."""
    loader_workers: LoaderWorkers | None = None
    """What any plan with workers respects. None: workers were not tried."""
    size_rule: SizeRule | None = None
    """Which batch sizes the task takes, where it refused some that follow a rule. None: it took every size that was tried."""
    pipeline: PipelineResult | None = None
    """The input pipeline, where it was measured: `calibrate --pipeline-only`."""

    @property
    def obeyed(self) -> SizeRule:
        """What every size that batchcal chooses obeys: the rule of the task, else `--multiple-of`."""
        multiple = self.options.multiple_of
        return self.size_rule or SizeRule(multiple_of=multiple, least=multiple)

    @property
    def policy(self) -> str:
        """The allocator policy that a plan is made for where nobody asks for another."""
        return self.allocator or self.options.allocator

    @property
    def is_usable(self) -> bool:
        """Whether a plan can be made from it."""
        return self.status not in ("partial", "predicted") and self.finding() is not None

    def finding(self, *, device: str | None = None, allocator: str | None = None) -> Finding | None:
        """The finding for `device` (default: the chosen one; `cuda` is the first of its kind) under `allocator` (default: the
        `policy`)."""
        wanted = allocator or self.policy
        return next((found for found in self.findings if self._is(found.device, device) and found.allocator == wanted), None)

    def speeds_of(self, finding: Finding) -> Speeds | None:
        """What the policy of `finding` achieved on its device in the race; None: it was not timed."""
        place = (finding.device, finding.allocator)
        return next((speeds for speeds in self.speeds if (speeds.device, speeds.allocator) == place and speeds.times), None)

    def finals_of(self, finding: Finding) -> Finals | None:
        """The race of threads and workers on the device of `finding`, under its policy if there is one; None: none was run."""
        here = [finals for finals in self.finals if finals.device == finding.device]
        return next((finals for finals in here if finals.allocator == finding.allocator), here[0] if here else None)

    def sizes_of(self, finding: Finding) -> SizeRace | None:
        """The race of micro-batches on the device of `finding` under its policy; None: none was run."""
        place = (finding.device, finding.allocator)
        return next((race for race in self.sizes if (race.device, race.allocator) == place), None)

    def budget(self, device: str | None = None) -> Budget | None:
        """The budget of `device` (default: the chosen one)."""
        return next((budget for budget in self.budgets if self._is(budget.device, device)), None)

    def device_of(self, asked: str | None) -> str:
        """The measured device that is meant by `asked` (None: the chosen one); `asked` itself where none was measured."""
        return next((budget.device for budget in self.budgets if self._is(budget.device, asked)), asked or self.chosen_device)

    def _is(self, device: str, asked: str | None) -> bool:
        wanted = asked or self.chosen_device
        return device == wanted or device.partition(":")[0] == wanted
