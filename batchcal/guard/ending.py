"""Evidence of how a child ended. `classify` turns the evidence into an outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.report import Raised
from batchcal.guard.outcome import Phase

LOST: Final = 213
"""Exit code of a child that could not write its result: no space on the disk, no memory for the report, dropped privileges. A
user's program is unlikely to use this code."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Evidence that the parent has about a child that has ended."""

    returned: JSON = None
    has_result: bool = False
    """True if there is a complete and valid result file with the return value of the function."""
    raised: Raised | None = None
    exit_status: int | None = None
    """Exit code, or minus the signal number. None: unknown."""
    killed_for: Literal["memory", "deadline", "stop"] | None = None
    """Reason why the parent killed the child. None: the parent did not kill it."""
    kill_reason: str = ""
    phase: Phase = "start"
    phase_limit_s: float = 0.0
    limit_name: str = ""
    """Name of the deadline for all phases, if that deadline ended the child."""
    output: str = ""
    """End of its output (at most 64 KiB)."""
    oom_kills: int = 0
    """Kernel OOM kills in the memory group while it ran."""
    armed: bool = False
    """RLIMIT_DATA was in force."""
    peak_anonymous_bytes: int = 0
    peak_hard_bytes: int = 0
    group_growth_bytes: int = 0
    """Largest growth of the group's hard memory over its value before the child, bytes."""
    near_limit: float = 0.0
    swapped_bytes: int = 0
    infrastructure: str = ""
    """The failure of a part of batchcal. Empty: none."""
    wall_s: float = 0.0
    layers: tuple[str, ...] = ()
    """Layers of the fence that were in force."""
    missing: tuple[str, ...] = ()
