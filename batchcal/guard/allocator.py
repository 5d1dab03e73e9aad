"""Allocator policies: how host memory is handed out, which on a CPU decides both the speed and the peak of a training.

glibc returns big blocks to the kernel at every step and pays for it in page faults. A policy is part of a plan and of the
fingerprint; most are read when a process starts, so each has a process environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from batchcal.core.values import Record

PolicyName = str
"""`default`, `thp`, `retain`, `tcmalloc`, `jemalloc`, `mimalloc`, or the path of a shared library to preload."""

BUILT_IN: Final = ("default", "thp", "retain")
LIBRARIES: Final[dict[str, tuple[str, ...]]] = {
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so", "libtcmalloc.so"),
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so"),
    "mimalloc": ("libmimalloc.so.2", "libmimalloc.so.3", "libmimalloc.so"),
}


class AllocatorPolicy(Record):
    """A policy with what puts it into force."""

    name: PolicyName
    kind: Literal["none", "environment", "mallopt", "preload"]
    library: str = ""
    """Absolute path of the preloaded library; empty for the policies that need none."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Variables to set, given the environment `base` (an LD_PRELOAD that is there is kept behind ours)."""
        raise NotImplementedError


def resolve(name: PolicyName, *, root: Path = Path("/")) -> AllocatorPolicy:
    """The policy called `name`, its library looked up in the linker's cache.

    Raises:
        UsageError: unknown name, or a library that this system does not have (says which package brings it).
    """
    raise NotImplementedError


def available(*, root: Path = Path("/")) -> tuple[AllocatorPolicy, ...]:
    """Every policy that this system can put into force, `default` first."""
    raise NotImplementedError
