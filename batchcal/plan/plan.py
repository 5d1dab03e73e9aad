"""Plan: the exact settings of a training. The JSON keys are a contract; other programs parse them."""

from __future__ import annotations

from typing import Final, Literal

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.values import Record
from batchcal.plan.division.group_limits import GroupLimits
from batchcal.values.settings import Objective

FORMAT: Final = 1
Status = Literal["verified", "derived", "predicted"]
"""`verified`: this plan was run completely; `derived`: follows from verified capacities; `predicted`: from the model only."""


Inexact = Literal["loss", "batch-statistics"]
"""`loss`: the gradient, because the loss is not a mean over its weight; `batch-statistics`: the statistics of BatchNorm."""


class Plan(Record):
    format: int = FORMAT
    kind: Literal["plan"] = "plan"
    status: Status
    micro_batch: int
    """The largest of `micro_batches`."""
    accumulation_steps: int
    effective_batch: int
    micro_batches: tuple[int, ...]
    """Sizes per optimizer step on one rank; their sum x world_size is the effective batch."""
    eval_batch: int
    num_workers: int
    prefetch_factor: int | None
    """None without workers: torch rejects a value then."""
    pin_memory: bool
    persistent_workers: bool
    multiprocessing_context: str | None
    intra_op_threads: int
    interop_threads: int
    allocator: str
    predicted_peak_bytes: int
    budget_bytes: int
    predicted_samples_per_s: float | None
    world_size: int
    objective: Objective
    limited_by: str
    device: str
    inexact: tuple[Inexact, ...] = ()
    """Changes by dividing the effective batch into these micro-batches, as `why` explains. Empty: only rounding."""
    unchecked: bool = False
    """True if the batch is divided and it is unknown whether that changes its gradient: `inexact` may lack the loss."""
    undivided: str = ""
    """Reason why a batch of this task must not be divided, even when memory runs out. Empty: it may be divided."""
    last_group: tuple[int, ...] = ()
    """Micro-batches of the last, smaller group of an epoch. Empty: no such group, or the number of samples is unknown."""
    last_group_error: str = ""
    """Error of that group in the rehearsal. Empty: it did not fail, or was not run."""
    size_rule: SizeRule | None = None
    """Batch sizes that the task accepts. None: every size, as far as known."""
    group_limits: GroupLimits = GroupLimits()
    """Limits of the micro-batches of any other smaller group."""
    why: dict[str, str]
    """Reason for each of the values above, by name."""
    notices: tuple[str, ...] = ()
    """Notices for the reader: another signer, less memory free now than the plan needs, ..."""


KEYS: Final = (
    "format", "status", "micro_batch", "accumulation_steps", "effective_batch", "micro_batches", "eval_batch", "num_workers",
    "prefetch_factor", "pin_memory", "persistent_workers", "multiprocessing_context", "intra_op_threads", "interop_threads",
    "allocator", "predicted_peak_bytes", "budget_bytes", "predicted_samples_per_s", "world_size", "objective", "limited_by",
    "device", "inexact",
)  # fmt: skip
"""Keys of a plan that other programs read, in this order. A contract."""
