"""How a child ended, as evidence. Turning evidence into an outcome is `classify`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from batchcal.guard.outcome import Phase
from batchcal.guard.report import Raised
from batchcal.guard.wire import JSON

LOST: Final = 213
"""Exit code of a child that could not leave its result: no room on the disk, no memory for the report, rights given up. No
code that a user's program is likely to choose."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Everything the parent knows about a child that is gone."""

    returned: JSON = None
    has_result: bool = False
    """A whole and valid result file that says what the function returned."""
    raised: Raised | None = None
    exit_status: int | None = None
    """Exit code, or minus the signal. None: nobody could tell."""
    killed_for: Literal["memory", "deadline", "stop"] | None = None
    """Why we killed it, if it was us."""
    kill_reason: str = ""
    phase: Phase = "start"
    phase_limit_s: float = 0.0
    limit_name: str = ""
    """Name of the deadline over all phases, where that ended it."""
    output: str = ""
    """The end of what it printed (64 KiB at most)."""
    oom_kills: int = 0
    """Kernel OOM kills in our group while it ran."""
    armed: bool = False
    """RLIMIT_DATA was in force."""
    peak_anonymous_bytes: int = 0
    peak_hard_bytes: int = 0
    group_growth_bytes: int = 0
    """Most that the group's hard memory grew over what it was before."""
    near_limit: float = 0.0
    swapped_bytes: int = 0
    infrastructure: str = ""
    """What of ours failed. Empty: nothing."""
    wall_s: float = 0.0
    layers: tuple[str, ...] = ()
    """The fence that was in force."""
    missing: tuple[str, ...] = ()
