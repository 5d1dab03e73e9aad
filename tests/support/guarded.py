"""Running test jobs in real children, for the tests of guard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from batchcal.guard.allocator import resolve
from batchcal.guard.cgroup import memory_meter
from batchcal.guard.ending import Ending
from batchcal.guard.launch import Job, Launcher, SpawnLauncher, ZygoteLauncher
from batchcal.guard.run import Limits, Listener, run
from batchcal.guard.watchdog import MemoryGroup
from batchcal.guard.wire import JSON

REPOSITORY = Path(__file__).resolve().parents[2]


@contextmanager
def launcher(kind: Literal["zygote", "spawn"], allocator: str = "default") -> Iterator[Launcher]:
    """A launcher that is closed afterwards."""
    made = ZygoteLauncher if kind == "zygote" else SpawnLauncher
    opened = made(resolve(allocator), {**os.environ, "PYTHONPATH": str(REPOSITORY)})
    try:
        yield opened
    finally:
        opened.close()


def job(name: str, **arguments: JSON) -> Job:
    """A function of tests.support.jobs as a job."""
    return Job(f"tests.support.jobs:{name}", arguments, str(REPOSITORY), dict(os.environ))


def ending_of(
    opened: Launcher,
    name: str,
    limits: Limits | None = None,
    group: MemoryGroup | None = None,
    listen: Listener | None = None,
    **arguments: JSON,
) -> Ending:
    """Runs one test job to its end."""
    if group is not None:
        return run(job(name, **arguments), opened, group, limits or Limits(), listen)
    with closing(memory_meter()) as meter:
        return run(job(name, **arguments), opened, meter, limits or Limits(), listen)
