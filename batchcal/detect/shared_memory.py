"""/dev/shm, through which DataLoader workers pass their batches. Docker's default is 64 MiB."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from batchcal.core.values import Frozen
from batchcal.detect.environment import SharedMemory
from batchcal.machine.roots import Root

PATH: Final = "/dev/shm"


class Space(Frozen):
    """Size and free space of a file system."""

    size_bytes: int
    free_bytes: int
    """Bytes that this user may still use."""


SpaceReader = Callable[[Path], Space]


def space_of(path: Path) -> Space:
    """Return the result of statvfs.

    Raises:
        OSError: there is no such directory, or this system has no statvfs.
    """
    if not hasattr(os, "statvfs"):
        raise OSError("this system has no statvfs")
    status = os.statvfs(path)
    return Space(size_bytes=status.f_blocks * status.f_frsize, free_bytes=status.f_bavail * status.f_frsize)


def read_shared_memory(root: Root, read_space: SpaceReader, notes: list[str]) -> SharedMemory | None:
    """Return size and free bytes of /dev/shm. None: there is none."""
    try:
        space = read_space(root.at(PATH))
    except OSError as error:
        notes.append(f"{PATH} cannot be used ({error.strerror or error}): DataLoader workers have no shared memory")
        return None
    return SharedMemory(path=PATH, size_bytes=space.size_bytes, free_bytes=space.free_bytes)
