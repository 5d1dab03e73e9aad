"""Resources of each of several workers on one machine: a share of the memory, its own cores, its own accelerator."""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Options
from batchcal.core.errors import UsageError
from batchcal.core.units import MIB, format_bytes
from batchcal.detect.environment import Environment
from batchcal.hpo.blueprint import Assignment, Blueprint

WORKER_BYTES: Final = 100 * MIB
"""Memory of a worker without its trial, bytes. Measured: 63 MB, and more while it plans."""
GRAINS: Final = 16
"""A share is rounded down to a multiple of a grain, and has at least this many grains. Otherwise, small changes in a neighbour's
memory would make every calibration stale."""


def share_out(blueprint: Blueprint, options: Options, environment: Environment, workers: int) -> tuple[Assignment, ...]:
    """Return the assignments of `workers` workers. A single worker gets everything.

    Raises:
        UsageError: there are too few resources for this many workers.
    """
    if workers == 1:
        return (Assignment(blueprint=blueprint, measure=options),)
    memory = environment.memory
    free = min(memory.limit.value - memory.used_bytes, memory.available_bytes)
    # A requested limit is the memory of the trainings alone, whatever else there is.
    share = free // workers - WORKER_BYTES
    if options.memory_limit_bytes is not None:
        share = min(share, options.memory_limit_bytes // workers)
    share = _rounded(share)
    if share <= WORKER_BYTES:
        raise UsageError(
            f"{workers} workers are too many for the free memory",
            known=f"{format_bytes(max(free, 0))} are free; each worker needs {format_bytes(WORKER_BYTES)} beside its trial",
            try_="--workers 1",
        )
    devices = _devices(options.device, environment, workers)
    cores = _cores(environment, workers)
    return tuple(
        Assignment(
            blueprint=blueprint,
            measure=options.model_copy(update={"memory_limit_bytes": share, "device": devices[index]}),
            index=index,
            neighbours=True,
            cpus=cores[index],
        )
        for index in range(workers)
    )


def _rounded(share: int) -> int:
    """Round down by less than a sixteenth. Shares that are close give the same result."""
    grain = 1 << max(share.bit_length() - GRAINS.bit_length(), 0)
    return share // grain * grain if share > 0 else 0


def _devices(device: str, environment: Environment, workers: int) -> list[str]:
    devices = [
        f"{accelerator.kind}:{accelerator.index}"
        for accelerator in environment.accelerators
        if device in ("auto", accelerator.kind)
    ]
    if device == "cpu" or (device == "auto" and not devices):
        return ["cpu"] * workers
    if len(devices) < workers:
        named = f"{device} is one accelerator" if ":" in device else f"no {device} is available"
        available = f"available: {', '.join(devices)}" if devices else named
        raise UsageError(
            f"{workers} workers need {workers} accelerators",
            known=f"{available}; workers do not share an accelerator",
            try_=f"--workers {max(1, len(devices))}, or --set device=cpu",
        )
    return devices[:workers]


def _cores(environment: Environment, workers: int) -> list[tuple[int, ...]]:
    """Return the cores of each worker. All get the same number, so that calibrations are valid for all of them.

    Empty if there are fewer cores than workers. Use no more cores than the quota has: with more, busy workers would be throttled
    together. Threads of one core stay together if the system reports them.
    """
    each = int(environment.cpu.cores.value) // workers
    if not hasattr(os, "sched_getaffinity") or each < 1:
        return [()] * workers
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_core_of(cpu), cpu))
    # If a quota leaves cores free, all containers on one machine would otherwise take the first cores.
    spare = len(cpus) - each * workers
    first = zlib.crc32(socket.gethostname().encode()) % len(cpus) if spare > 0 else 0
    cpus = cpus[first:] + cpus[:first]
    return [tuple(cpus[index * each : (index + 1) * each]) for index in range(workers)]


def _core_of(cpu: int) -> tuple[int, int]:
    """Return the package and core of the thread `cpu`. If the system does not report them, it counts as a separate core."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        package, core = ((topology / name).read_text(encoding="ascii") for name in ("physical_package_id", "core_id"))
        return int(package), int(core)
    except (OSError, ValueError):
        return 0, cpu
