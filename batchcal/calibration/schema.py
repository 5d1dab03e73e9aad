"""calibration.json: what was measured, on what machine, of what task, and what follows from it.

A record never borrows from its reader: a missing fact is missing, today's machine is not yesterday's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from batchcal.calibration.memory_model import MemoryModel
from batchcal.calibration.pipeline import PipelineResult
from batchcal.calibration.rehearsal import Attribution, Finals, Rehearsal, SizeRace
from batchcal.calibration.shape import ShapeEstimate
from batchcal.calibration.speed import Speeds
from batchcal.core.values import Record
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Outcome
from batchcal.workload.facts import TaskFacts
from batchcal.workload.identity import TaskIdentity

# Format history
# 1 - (0.1) first version
FORMAT: Final = 1
TIME_TO_LIVE: Final = timedelta(days=7)

BatchSize = Annotated[int, Field(ge=1, le=2**31)]
"""Samples in a micro-batch. A size out of this range was not measured by anybody."""
Fraction = Annotated[float, Field(ge=0, lt=1)]

Mode = Literal["train", "eval"]
Objective = Literal["memory", "throughput"]
"""`memory`: the largest micro-batch that fits; `throughput`: the one that trained fastest, of those that were timed."""
SearchPhase = Literal["profile", "scale", "verify", "expand", "bisect", "eval", "confirm"]
"""`profile`: tiny batches; `scale`: about half the expected cap; then the three phases: `verify` the cap, `expand` under the
headroom threshold, `bisect` after a miss."""
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
    """What the plan that is rehearsed is for. time_limit_s, max_probes, effective_batch, objective and seed do not enter the
    fingerprint."""


class Budget(Record):
    """Bytes that the training may use on one device: limit - others - margin."""

    device: str
    limit_bytes: int
    others_bytes: int
    """Used by others when we began, batchcal's own processes left out."""
    margin_bytes: int
    budget_bytes: int
    learned_from: str


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
    """`sequence` of the measurement that ran it."""
    limited_by: LimitedBy
    undone: str = ""
    """What a longer search would still have tried."""
    accumulated: bool = False
    """True: it was run with the gradients of an earlier micro-batch alive, as accumulation has them. False: a plan that
    accumulates must add them."""


class Finding(Record):
    """What is known for one device under one allocator policy."""

    device: str
    allocator: str
    train: Capacity
    eval: Capacity | None
    train_memory: MemoryModel
    eval_memory: MemoryModel | None


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
    status: Literal["complete", "unsettled", "partial"]
    """`unsettled`: verified, but time or probes ended before the search did; `partial`: nothing verified yet."""
    environment: Environment
    task: TaskIdentity
    facts: TaskFacts | None
    options: Options
    fingerprint: Fingerprint
    budgets: tuple[Budget, ...]
    measurements: tuple[Measurement, ...]
    findings: tuple[Finding, ...]
    chosen_device: str
    effective_batch: BatchSize | None
    """Asked for, by flag or by `[plan]`; None: the capacity."""
    undone: tuple[str, ...] = ()
    wall_s: float = 0.0
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
    pipeline: PipelineResult | None = None
    """The input pipeline, where it was measured: `calibrate --pipeline-only`."""

    @property
    def policy(self) -> str:
        """The allocator policy that a plan is made for where nobody asks for another."""
        return self.allocator or self.options.allocator

    @property
    def is_usable(self) -> bool:
        """Whether a plan can be made from it."""
        return self.status != "partial" and self.finding() is not None

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
