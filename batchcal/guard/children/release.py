"""Return memory that the program has freed, but its allocator keeps, to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

_ALL_ARENAS: Final = b"arena.4096.purge"
"""MALLCTL_ARENAS_ALL (jemalloc(3))."""


def trim() -> bool:
    """Let the allocator of this process return free memory to the system. Takes about 10 ms to 1 s, depending on the amount.

    Returns:
        False if the allocator in force has no such function.
    """
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return False
    # The function of a preloaded library first: glibc's own is present, too, but its heap is empty.
    released = [_call(library, name, *arguments) for name, arguments in _RELEASES]
    return any(released)


_RELEASES: Final[tuple[tuple[str, tuple[object, ...]], ...]] = (
    ("MallocExtension_ReleaseFreeMemory", ()),  # gperftools
    ("mallctl", (_ALL_ARENAS, None, None, None, ctypes.c_size_t(0))),  # jemalloc
    ("mi_collect", (ctypes.c_bool(True),)),  # mimalloc
    ("malloc_trim", (ctypes.c_size_t(0),)),  # glibc
)


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> bool:
    function: Callable[..., object] | None = getattr(library, name, None)
    if function is None:
        return False
    function(*arguments)
    return True
