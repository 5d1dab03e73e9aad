"""detect: the resources that this process may really use, the source of each number, and the problems to expect."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from batchcal.core.errors import GuardError
from batchcal.detect import thread_pools
from batchcal.detect.accelerator import present
from batchcal.detect.advice import advise
from batchcal.detect.cpu import read_cpu
from batchcal.detect.environment import Cpu, Environment
from batchcal.detect.limits import open_files, pids, read_limits
from batchcal.detect.memory import read_memory
from batchcal.detect.shared_memory import SpaceReader, read_shared_memory, space_of
from batchcal.detect.software import read_software
from batchcal.detect.torch_answer import TorchAnswer
from batchcal.machine.allocator import available
from batchcal.machine.roots import Root


def detect(
    *,
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
    ask_child: Callable[[], TorchAnswer] | None = None,
    ask_space: SpaceReader = space_of,
) -> Environment:
    """Return the resources of this machine that this process may use. Takes milliseconds and does not load torch.

    Args:
        root: where /proc, /sys and /dev are read.
        environ: variables to read; default: those of this process.
        ask_child: queries torch in a child (`torch_answer.query_torch_in_child`; about 2 s). Called only if this can give a
            result: there is a driver of an accelerator that torch was built for, or threadpoolctl is installed. None: torch is
            not queried.
        ask_space: returns size and free bytes of a file system.
    """
    files = Root(root)
    variables = os.environ if environ is None else environ
    notes: list[str] = []
    cpu = read_cpu(files, variables, notes)
    limits = read_limits(files)
    software = read_software(files, variables)
    answer = _query_torch(files, variables, software.torch, ask_child, notes)
    environment = Environment(
        cpu=cpu,
        memory=read_memory(files, limits, notes),
        shared_memory=read_shared_memory(files, ask_space, notes),
        open_files=open_files(files, limits, notes),
        pids=pids(files, limits),
        accelerators=answer.accelerators if answer else (),
        accelerators_asked=answer is not None,
        software=software.model_copy(update={"cuda": answer.cuda}) if answer else software,
        thread_pools=answer.thread_pools if answer else (),
        optimal_threads=optimal_threads(cpu),
        optimal_workers=optimal_workers(cpu),
        notes=tuple(notes),
    )
    names = frozenset(policy.name for policy in available(root=root))
    return environment.model_copy(update={"advice": advise(environment, names)})


def detect_for(device: str) -> Environment:
    """Return the resources of this machine. Accelerators are queried from torch if `device` may be one: there is a driver, and
    the CPU alone was not requested."""
    if device != "cpu" and present(environ=os.environ):
        from batchcal.detect.torch_answer import query_torch_in_child

        return detect(ask_child=query_torch_in_child)
    return detect()


def optimal_threads(cpu: Cpu) -> int:
    """Return the physical cores within the quota, at least 1. Two threads on the halves of a core share its arithmetic units. A
    thread above the quota makes the scheduler stop all of them."""
    return max(1, min(cpu.physical, math.floor(cpu.cores.value)))


def optimal_workers(cpu: Cpu) -> int:
    """Return half of the cores above two. The training step itself needs the first two."""
    return max(0, math.floor((cpu.cores.value - 2) / 2))


def _query_torch(
    files: Root, environ: Mapping[str, str], torch: str, ask_child: Callable[[], TorchAnswer] | None, notes: list[str]
) -> TorchAnswer | None:
    driver = present(files, environ)
    if driver and torch.endswith("+cpu"):
        notes.append(f"a driver of an accelerator is installed, but torch {torch} was built for the CPU only")
    if ask_child is None or not torch or not ((driver and not torch.endswith("+cpu")) or thread_pools.can_query()):
        return None
    try:
        answer = ask_child()
    except GuardError as error:
        notes.append(f"torch could not be queried for accelerators: {error.what}{f' ({error.known})' if error.known else ''}")
        return None
    notes.extend(answer.problems)
    return answer
