"""The line that programs search for: `resource_limits cpu_cores=1.5 memory_mb=7629 optimal_threads=1 ...`."""

from __future__ import annotations

from typing import Final

from batchcal.core.progress import Field
from batchcal.core.units import MIB
from batchcal.detect.environment import Environment

EVENT: Final = "resource_limits"


def summary(environment: Environment, *, max_batch_size: int | None = None) -> dict[str, Field]:
    """Return the fields of the line, for `core.progress.key_values(EVENT, ...)`. `max_batch_size`: from a calibration, if any."""
    shm, pids = environment.shared_memory, environment.pids
    return {
        "cpu_cores": environment.cpu.cores.value,
        "memory_mb": environment.memory.limit.value // MIB,
        "optimal_threads": environment.optimal_threads,
        "optimal_workers": environment.optimal_workers,
        "max_batch_size": max_batch_size,
        "memory_used_mb": environment.memory.used_bytes // MIB,
        "shm_mb": shm.size_bytes // MIB if shm else None,
        "open_files": environment.open_files.value,
        "pids": pids.value if pids else None,
        "accelerators": len(environment.accelerators) if environment.accelerators_asked else None,
    }
