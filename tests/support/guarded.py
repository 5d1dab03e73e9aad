"""Running test jobs in real children, for the tests of guard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from batchcal.guard.channel.wire import JSON
from batchcal.guard.ending import Ending
from batchcal.guard.job import Function
from batchcal.guard.launch import FunctionJob, Launcher, SpawnLauncher, ZygoteLauncher
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.run import ChildLimits, Listener, run
from batchcal.machine.allocator import resolve
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.children.launchers import PRELOAD
from tests.support import jobs

REPOSITORY = Path(__file__).resolve().parents[2]


@contextmanager
def launcher(kind: Literal["zygote", "spawn"], allocator: str = "default") -> Iterator[Launcher]:
    """A launcher that is closed afterwards."""
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    policy = resolve(allocator)
    opened = ZygoteLauncher(policy, environ, PRELOAD) if kind == "zygote" else SpawnLauncher(policy, environ)
    try:
        yield opened
    finally:
        opened.close()


def job(name: str, **arguments: JSON) -> FunctionJob:
    """A function of tests.support.jobs as a job."""
    function: Function = getattr(jobs, name)
    return FunctionJob(function, arguments, str(REPOSITORY), dict(os.environ))


def ending_of(
    opened: Launcher,
    name: str,
    limits: ChildLimits | None = None,
    group: GroupMeter | None = None,
    listen: Listener | None = None,
    **arguments: JSON,
) -> Ending:
    """Runs one test job to its end."""
    if group is not None:
        return run(job(name, **arguments), opened, group, limits or ChildLimits(), listen)
    with closing(memory_meter()) as meter:
        return run(job(name, **arguments), opened, meter, limits or ChildLimits(), listen)
