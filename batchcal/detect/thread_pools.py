"""Thread pools of the libraries that a training loads, if threadpoolctl is installed.

`query_pools` is for a child, because it loads torch.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping

from batchcal.detect.environment import ThreadPool


def can_query() -> bool:
    """True if threadpoolctl is installed. Imports nothing."""
    return importlib.util.find_spec("threadpoolctl") is not None


def query_pools() -> tuple[ThreadPool, ...]:
    """Load torch and numpy and return the thread pools of this process. Empty without threadpoolctl."""
    for name in ("torch", "numpy"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return ()
    return pools_of(threadpoolctl.threadpool_info())


def pools_of(entries: Iterable[Mapping[str, object]]) -> tuple[ThreadPool, ...]:
    """Convert threadpoolctl's dictionaries to ThreadPool values."""
    pools: list[ThreadPool] = []
    for entry in entries:
        threads, library, version = entry.get("num_threads"), entry.get("prefix"), entry.get("version")
        if isinstance(threads, int) and isinstance(library, str):
            pools.append(ThreadPool(library=library, threads=threads, version=version if isinstance(version, str) else ""))
    return tuple(pools)
