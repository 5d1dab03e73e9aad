"""What became of a child: one of a closed set of values. Pure; imports nothing but our own base.

Only `Fits` raises the lower bound of a search, only `OutOfMemory` and `Swapping` lower the upper one. Everything else
moves nothing: a user's bug is never "too big".
"""

from __future__ import annotations

from textwrap import indent
from typing import Annotated, Final, Literal

from pydantic import Field

from batchcal.core.values import Record

_SHOWN: Final = 2_000
"""Characters of output beside a traceback."""

MemorySource = Literal["allocator", "fence", "watchdog", "kernel", "shm", "accelerator", "budget"]
"""Who said that memory ran out.

`allocator`: the process's own allocation failed with no fence armed; `fence`: RLIMIT_DATA made it fail; `watchdog`: the
parent killed it in time; `kernel`: the OOM killer got it (the fence failed); `shm`: /dev/shm was full; `accelerator`:
the device was full; `budget`: it ran to its end, but above the budget.
"""

Phase = Literal["start", "load", "read", "warm-up", "measure", "finish"]
"""Where a child was; `read`: it reads samples, and runs nothing with them. Each phase has its own deadline."""


class Peak(Record):
    """The most memory that a probe held at once, in bytes."""

    demand_bytes: int
    """Host memory that cannot be reclaimed: anonymous plus shared, over the child and its workers."""
    anonymous_bytes: int = 0
    shared_bytes: int = 0
    file_bytes: int = 0
    """File pages resident at the end. Reclaimable, so not part of the demand."""
    begin_bytes: int | None = None
    """Demand when the measured steps began. A peak that is no larger says that they fit, not what they need."""
    accelerator_bytes: int | None = None
    """Most reserved on the accelerator by the caching allocator plus what the context holds."""
    accelerator_allocated_bytes: int | None = None

    def held_on(self, device: str) -> int:
        """What is held against the budget of `device`, bytes."""
        on_host = device == "cpu" or self.accelerator_bytes is None
        return self.demand_bytes if on_host else self.accelerator_bytes or 0


class Fits(Record):
    kind: Literal["fits"] = "fits"
    peak: Peak
    steps: int
    """Optimizer steps (train) or evaluation steps that were run after the warm-up."""
    step_s: float
    """Median seconds of a step, the first one left out where there are more."""
    samples_per_s: float


class OutOfMemory(Record):
    kind: Literal["out-of-memory"] = "out-of-memory"
    source: MemorySource
    detail: str = ""
    peak: Peak | None = None
    """Known where the child lived to tell it, or was watched: a lower bound of what it wanted."""


class Swapping(Record):
    kind: Literal["swapping"] = "swapping"
    swapped_bytes: int
    peak: Peak | None = None


class TimedOut(Record):
    kind: Literal["timed-out"] = "timed-out"
    phase: Phase
    limit_s: float
    limit_name: str = ""
    """Name of the limit, where it is not that of the phase: `the time limit of 20 s (--time-limit)`."""
    detail: str = ""
    """Where it stood, from faulthandler, and the end of what it printed."""


class UserCodeFailed(Record):
    kind: Literal["user-code-failed"] = "user-code-failed"
    phase: Phase
    error: str
    """`ValueError: shapes do not match`."""
    traceback: str = ""
    output: str = ""
    """The end of what the code printed."""
    hint: str = ""
    """What to type next, where we know."""

    @property
    def evidence(self) -> str:
        """The traceback; the output where there is none, and with the traceback where the code failed while it was loaded."""
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
    """Died by a signal or an odd error near its limit (oneDNN segfaults when small allocations fail). Retried once; a second time
    counts as out of memory."""
    detail: str
    near_limit: float
    """Last seen demand / allowed bytes."""


class Infrastructure(Record):
    kind: Literal["infrastructure"] = "infrastructure"
    detail: str


Outcome = Annotated[
    Fits | OutOfMemory | Swapping | TimedOut | UserCodeFailed | WorkerDied | KilledFromOutside | Suspect | Infrastructure,
    Field(discriminator="kind"),
]

TooBig = (OutOfMemory, Swapping)
"""The outcomes that lower the upper bound."""
