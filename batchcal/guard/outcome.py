"""Outcome of a child: one of a closed set of values. Pure; imports only the base of batchcal.

Only `Fits` raises the lower bound of a search. Only `OutOfMemory` and `Swapping` lower the upper bound. All other outcomes
change no bound: a user's bug is never "too big".
"""

from __future__ import annotations

from textwrap import indent
from typing import Annotated, Final, Literal

from pydantic import Field

from batchcal.core.values import Record

_SHOWN: Final = 2_000
"""Characters of output that are shown with a traceback."""

MemorySource = Literal["allocator", "fence", "watchdog", "kernel", "shm", "accelerator", "budget"]
"""Source of the report that memory ran out.

`allocator`: an allocation of the process failed without an armed fence; `fence`: an allocation failed because of RLIMIT_DATA;
`watchdog`: the parent killed the process in time; `kernel`: the OOM killer killed it (the fence failed); `shm`: /dev/shm was
full; `accelerator`: the device was full; `budget`: the process completed its run, but above the budget.
"""

Phase = Literal["start", "load", "read", "warm-up", "measure", "finish"]
"""Phase of a child. In `read` it reads samples, and runs nothing with them. Each phase has its own deadline."""


class Peak(Record):
    """Peak memory of a probe, bytes."""

    demand_bytes: int
    """Host memory that cannot be reclaimed: anonymous plus shared memory of the child and its workers."""
    anonymous_bytes: int = 0
    shared_bytes: int = 0
    file_bytes: int = 0
    """File pages resident at the end. Reclaimable, so not part of the demand."""
    begin_bytes: int | None = None
    """Demand at the start of the measured steps. A peak that is not larger shows that they fit, but not how much they need."""
    accelerator_bytes: int | None = None
    """Peak that the caching allocator reserved on the accelerator, plus the memory of the context."""
    accelerator_allocated_bytes: int | None = None

    def bytes_on(self, device: str) -> int:
        """Memory to compare with the budget of `device`, bytes."""
        on_host = device == "cpu" or self.accelerator_bytes is None
        return self.demand_bytes if on_host else self.accelerator_bytes or 0


class Fits(Record):
    kind: Literal["fits"] = "fits"
    peak: Peak
    steps: int
    """Optimizer steps (train) or evaluation steps that were run after the warm-up."""
    step_s: float
    """Median time of a step, seconds. The first step is left out if there are more."""
    samples_per_s: float


class OutOfMemory(Record):
    kind: Literal["out-of-memory"] = "out-of-memory"
    source: MemorySource
    detail: str = ""
    peak: Peak | None = None
    """Lower bound of the memory that the child needs. Known if the child could report it or was watched."""


class Swapping(Record):
    kind: Literal["swapping"] = "swapping"
    swapped_bytes: int
    peak: Peak | None = None


class TimedOut(Record):
    kind: Literal["timed-out"] = "timed-out"
    phase: Phase
    limit_s: float
    limit_name: str = ""
    """Name of the limit, if it is not the limit of the phase: `the time limit of 20 s (--time-limit)`."""
    detail: str = ""
    """Stacks of the child, from faulthandler, and the end of its output."""


class UserCodeFailed(Record):
    kind: Literal["user-code-failed"] = "user-code-failed"
    phase: Phase
    error: str
    """`ValueError: shapes do not match`."""
    traceback: str = ""
    output: str = ""
    """End of the output of the code."""
    hint: str = ""
    """Suggestion for the user. Empty: unknown."""

    @property
    def evidence(self) -> str:
        """The traceback, or the output if there is no traceback. Both if the code failed while it was loaded."""
        traceback, output = self.traceback.strip(), self.output.strip()
        if traceback and output and self.phase == "load":
            return f"{traceback}\nIt printed:\n{indent(output[-_SHOWN:], '  ')}"
        return traceback or output


class WorkerDied(Record):
    kind: Literal["worker-died"] = "worker-died"
    detail: str


class KilledFromOutside(Record):
    kind: Literal["killed-from-outside"] = "killed-from-outside"
    signal: int


class Suspect(Record):
    kind: Literal["suspect"] = "suspect"
    """The child died near its limit, by a signal or an unusual error (oneDNN segfaults when small allocations fail). The probe is
    retried once; a second time counts as out of memory."""
    detail: str
    near_limit: float
    """Last measured demand / allowed bytes."""


class Infrastructure(Record):
    kind: Literal["infrastructure"] = "infrastructure"
    detail: str


Outcome = Annotated[
    Fits | OutOfMemory | Swapping | TimedOut | UserCodeFailed | WorkerDied | KilledFromOutside | Suspect | Infrastructure,
    Field(discriminator="kind"),
]

TooBig = (OutOfMemory, Swapping)
"""The outcomes that lower the upper bound."""
