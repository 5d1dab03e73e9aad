"""What each of several workers on one machine may use: a share of the memory, cores of its own, an accelerator of its own."""

from __future__ import annotations

import os
from typing import Final

from batchcal.calibration.schema import Options
from batchcal.core.errors import UsageError
from batchcal.core.units import MIB, format_bytes
from batchcal.detect.environment import Environment
from batchcal.hpo.blueprint import Assignment, Blueprint

WORKER_BYTES: Final = 100 * MIB
"""A worker beside its trial holds 63 MB (measured), and more while it plans."""
GRAINS: Final = 32
"""A share is a whole number of such parts of the limit: what a neighbour takes more or less would else make every calibration
stale."""


def share_out(blueprint: Blueprint, options: Options, environment: Environment, workers: int) -> tuple[Assignment, ...]:
    """The parts of `workers` workers. One alone has everything.

    Raises:
        UsageError: there is too little for so many.
    """
    if workers == 1:
        return (Assignment(blueprint=blueprint, measure=options),)
    memory = environment.memory
    free = min(memory.limit.value, options.memory_limit_bytes or memory.limit.value) - memory.used_bytes
    grain = memory.limit.value // GRAINS
    share = (min(free, memory.available_bytes) // workers - WORKER_BYTES) // grain * grain
    if share <= WORKER_BYTES:
        raise UsageError(
            f"{workers} workers are too many for the memory there is",
            known=f"{format_bytes(max(free, 0))} are free; each worker takes {format_bytes(WORKER_BYTES)} besides its trial",
            try_="--workers 1",
        )
    devices = _devices(options.device, environment, workers)
    cores = _cores(environment, workers)
    return tuple(
        Assignment(
            blueprint=blueprint,
            measure=options.model_copy(update={"memory_limit_bytes": share, "device": devices[index]}),
            index=index,
            cpus=cores[index],
        )
        for index in range(workers)
    )


def _devices(asked: str, environment: Environment, workers: int) -> list[str]:
    there = [f"{one.kind}:{one.index}" for one in environment.accelerators if asked in ("auto", one.kind)]
    if asked == "cpu" or (asked == "auto" and not there):
        return ["cpu"] * workers
    if len(there) < workers:
        raise UsageError(
            f"{workers} workers need an accelerator each",
            known=f"there is: {', '.join(there) or asked}; the memory of one is not divided",
            try_=f"--workers {max(1, len(there))}, or --set device=cpu",
        )
    return there[:workers]


def _cores(environment: Environment, workers: int) -> list[tuple[int, ...]]:
    """Cores by worker, each as many: calibrations then hold for all of them. Empty where there are fewer cores than workers.

    As many as the quota has, where it has fewer than may be run on: all at work, they would be stopped together.
    """
    each = int(environment.cpu.cores.value) // workers
    if not hasattr(os, "sched_getaffinity") or each < 1:
        return [()] * workers
    there = sorted(os.sched_getaffinity(0))
    return [tuple(there[index * each : (index + 1) * each]) for index in range(workers)]
