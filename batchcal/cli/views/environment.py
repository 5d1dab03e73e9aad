"""The result of `detect`: each number with its source, and the problems to expect."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.calibration.view import hanging
from batchcal.core.units import count_of, format_bytes
from batchcal.detect.environment import Accelerator, Candidate, Environment


def show(environment: Environment) -> Iterator[RenderableType]:
    """Yield a table, then the advice."""
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("value", no_wrap=True)
    table.add_column("source", style="dim", overflow="fold")
    for name, value, source in rows(environment):
        table.add_row(name, value, source)
    yield table
    for note in environment.notes:
        yield hanging("  note: ", note, style="dim")
    for advice in environment.advice:
        yield Text("")
        yield hanging("  ! ", advice.text, style="yellow")
        if advice.try_:
            yield hanging("    try: ", advice.try_)


def rows(environment: Environment) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, source of the value and reason for choosing it)."""
    yield from _cpu(environment)
    yield from _memory(environment)
    yield from _limits(environment)
    yield from _software(environment)
    yield "threads", str(environment.optimal_threads), "start value: physical cores within the quota"
    yield "workers", str(environment.optimal_workers), "start value: half of the cores above two"


def _cpu(environment: Environment) -> Iterator[tuple[str, str, str]]:
    cpu = environment.cpu
    yield "cores", f"{cpu.cores.value:g}", _source(cpu.cores.learned_from, cpu.cores.why)
    for candidate in _rejected(cpu.cores.considered, cpu.cores.learned_from):
        yield "", f"  {candidate.value:g}", candidate.learned_from
    visible = "" if cpu.visible == cpu.logical else f"; {cpu.visible} are visible"
    yield (
        "processors",
        f"{cpu.logical} logical",
        f"{count_of(cpu.physical, 'physical core')}{visible}; {cpu.model or 'unknown model'}, {cpu.architecture}",
    )


def _memory(environment: Environment) -> Iterator[tuple[str, str, str]]:
    memory = environment.memory
    yield "memory limit", format_bytes(memory.limit.value), _source(memory.limit.learned_from, memory.limit.why)
    for candidate in _rejected(memory.limit.considered, memory.limit.learned_from):
        yield "", f"  {format_bytes(candidate.value)}", candidate.learned_from
    group = "" if memory.cgroup_version == "none" else f"cgroup {memory.cgroup_version} {memory.cgroup_path}"
    yield "used", format_bytes(memory.used_bytes), f"not reclaimable; {group}" if group else "not reclaimable"
    yield "file cache", format_bytes(memory.reclaimable_bytes), "the kernel frees it when memory is needed"
    yield "available", format_bytes(memory.available_bytes), "MemAvailable of the machine"
    if memory.high_bytes is not None:
        yield "memory.high", format_bytes(memory.high_bytes), "above this, the kernel slows down the processes of the cgroup"
    swap = "none" if memory.swap_total_bytes == 0 else format_bytes(memory.swap_total_bytes)
    limited = "" if memory.swap_limit_bytes is None else f"this cgroup may use {format_bytes(memory.swap_limit_bytes)}"
    yield "swap", swap, limited
    for name, value in (("RLIMIT_DATA", memory.rlimit_data_bytes), ("RLIMIT_AS", memory.rlimit_as_bytes)):
        if value is not None:
            yield name, format_bytes(value), "getrlimit"
    if memory.oom_group:
        yield "oom.group", "set", "if memory runs out, the kernel kills all processes of the container"


def _limits(environment: Environment) -> Iterator[tuple[str, str, str]]:
    shm = environment.shared_memory
    if shm is None:
        yield "shared memory", "none", "there is no /dev/shm"
    else:
        yield "shared memory", format_bytes(shm.size_bytes), f"{shm.path}, {format_bytes(shm.free_bytes)} free"
    yield "open files", str(environment.open_files.value), environment.open_files.learned_from
    if environment.pids is None:
        yield "processes", "unlimited", ""
    else:
        yield "processes", str(environment.pids.value), environment.pids.learned_from


def _software(environment: Environment) -> Iterator[tuple[str, str, str]]:
    software = environment.software
    for accelerator in environment.accelerators:
        yield f"{accelerator.kind}:{accelerator.index}", *_accelerator(accelerator)
    if environment.accelerators_asked and not environment.accelerators:
        yield "accelerators", "none", "torch.accelerator, read in a child process"
    elif not environment.accelerators_asked:
        yield "accelerators", "none", "no driver that this build of torch can use"
    torch = software.torch or "not installed"
    yield "torch", torch + (f", CUDA {software.cuda}" if software.cuda else ""), "metadata of the installed distribution"
    yield "system", software.os, f"{software.libc}, Python {software.python}"
    for pool in environment.thread_pools:
        yield (
            pool.library,
            count_of(pool.threads, "thread"),
            f"threadpoolctl{f', version {pool.version}' if pool.version else ''}",
        )
    for name, value in sorted((software.thread_environment | software.allocator_environment).items()):
        yield name, value, "environment"


def _accelerator(accelerator: Accelerator) -> tuple[str, str]:
    detail = [
        accelerator.name,
        f"capability {accelerator.capability}" if accelerator.capability else "",
        "MIG" if accelerator.mig else "",
    ]
    free = f"{format_bytes(accelerator.free_bytes)} of {format_bytes(accelerator.total_bytes)} free"
    return free, ", ".join(part for part in detail if part)


def _source(learned_from: str, why: str) -> str:
    return f"{learned_from}: {why}" if why else learned_from


def _rejected(considered: tuple[Candidate, ...], winner: str) -> list[Candidate]:
    return [candidate for candidate in considered if candidate.learned_from != winner]
