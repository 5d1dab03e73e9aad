"""The first line of the fence: RLIMIT_DATA."""

from __future__ import annotations

import mmap
import resource
import sys
from pathlib import Path
from typing import Final

from batchcal.machine.meters import read_status

FIRST_TO_GO: Final = 1000
"""The largest oom_score_adj: if the kernel must kill, it takes the child and not its parent."""
SLACK_BYTES: Final = 12 << 20
"""VmData holds freed blocks and trimmed arenas that are not resident: with none allowed for, runs were refused 8-15 MiB below
what they might hold (512 MiB group, small CNN). The watchdog covers these few MiB."""

STACK_BYTES: Final = 8 << 20
"""Of a thread, mapped whole when it starts and hardly ever touched."""


def arm_data_limit(pid: int, allowed_bytes: int) -> bool:
    """Lets `pid` grow its private memory until it holds `allowed_bytes`, then its allocations fail with ENOMEM.

    Armed by the parent, once the child has warmed up: 300 of 300 outcomes were clean that way; armed cold, 21 % were not
    (segfaults in oneDNN, hangs). VmData is larger than what is resident (thread stacks, freed blocks), so the limit is what it
    has now plus what it may still grow. The hard limit is lowered too: user code cannot raise it again.

    Returns:
        False where the system has no such limit or we may not set it.
    """
    if sys.platform != "linux":
        return False
    status = read_status(pid)
    if status is None:
        return False
    limit = status.data_bytes + max(0, allowed_bytes - status.hard_bytes) + SLACK_BYTES
    try:
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    except (OSError, ValueError):
        return False
    return True


class OwnDataLimit:
    """The data limit of this very process, held to the room there is: set again and again while that changes.

    The hard limit is left, so that the soft one can be raised again; what it was before is its upper bound, and is put back.
    """

    def __init__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        # Mapped and not resident: stacks, mostly. What is so later on besides was freed, and can be filled again without being
        # mapped: free blocks that went back to the system, hundreds of MB after malloc_trim. It counts as room that is taken.
        self._began = read_status()

    def hold(self, growth_bytes: int) -> bool:
        """Lets resident private memory grow by `growth_bytes`, then allocations fail with ENOMEM.

        Returns:
            False where the system has no such limit or we may not set it.
        """
        now, began = read_status(), self._began
        if sys.platform != "linux" or now is None or began is None:
            return False
        mapped = began.data_bytes - began.anonymous_bytes + STACK_BYTES * max(0, now.threads - began.threads)
        limit = now.anonymous_bytes + mapped + max(0, growth_bytes) + SLACK_BYTES
        soft, hard = self._before
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
        except (OSError, ValueError):
            return False
        return True

    def lift(self) -> None:
        """As it was before."""
        resource.setrlimit(resource.RLIMIT_DATA, self._before)


def data_limit_holds() -> bool:
    """Whether this process's data limit is one that the kernel keeps. Asked by the child, once it is armed.

    A kernel booted with ignore_rlimit_data, or a sandbox that plays Linux, takes the limit and lets everything pass. A mapping as
    large as the whole limit, never touched, must be refused.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return False
    try:
        mmap.mmap(-1, limit, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError, ValueError):
        return True
    return False


def volunteers(pid: int) -> bool:
    """Whether the kernel's OOM killer would take `pid` before others. Where the child could not ask for it, it does not."""
    try:
        return Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii").strip() == str(FIRST_TO_GO)
    except OSError:
        return False
