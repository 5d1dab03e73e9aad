"""Commands for the tests of guard: programs that start others, in sessions of their own, and hold memory.

`python -m tests.support.trees ACT [ARGUMENTS]` is what a process of such a command runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from batchcal.guard.cleanup.kill import started_with
from batchcal.guard.commands.command import CommandJob, CommandLauncher, run_command
from batchcal.guard.commands.rank import RankLine
from batchcal.guard.ending import Ending
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.run import ChildLimits, Listener
from batchcal.machine.cgroup import memory_meter

REPOSITORY: Final = Path(__file__).resolve().parents[2]
MIB: Final = 1 << 20
PROGRAM: Final = (sys.executable, "-m", "tests.support.trees")
MARK: Final = "BATCHCAL_TEST_MARK"
"""In the environment of every process of a test's command: by it they are found, whoever their parent is."""


def ending_of(
    *argv: str,
    limits: ChildLimits | None = None,
    group: GroupMeter | None = None,
    listen: Listener | None = None,
    check: Callable[[], None] | None = None,
    mark: str = "",
    launcher: CommandLauncher | None = None,
) -> Ending:
    """Runs one command to its end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), MARK: mark}
    job = CommandJob(argv, environment, str(REPOSITORY))
    with closing(memory_meter()) as meter, closing(launcher or CommandLauncher()) as opened:
        return run_command(job, opened, group or meter, limits or ChildLimits(), listen, check=check)


def marked(mark: str) -> tuple[int, ...]:
    """Processes that carry `mark` and have not ended."""
    return started_with(f"{MARK}={mark}")


def hold(mib: str, seconds: str = "60") -> None:
    """Holds anonymous memory."""
    held = bytearray(int(mib) * MIB)
    print(f"holds {len(held)}", flush=True)
    time.sleep(float(seconds))


def share(mib: str, children: str, seconds: str) -> None:
    """Holds memory that forked children share; each holds a tenth of it for itself."""
    held = bytearray(int(mib) * MIB)
    for _ in range(int(children)):
        if os.fork() == 0:
            own = bytearray(int(mib) * MIB // 10)
            time.sleep(float(seconds))
            os._exit(len(own) == 0)
    time.sleep(float(seconds))
    print(len(held))


def ready(mib: str) -> None:
    """Reports that it is ready, takes memory step by step, and reports how far it came."""
    line = RankLine.from_environment()
    assert line is not None
    armed, held = line.ready(), []
    try:
        for _ in range(int(mib)):
            held.append(bytearray(MIB))
            if len(held) % 32 == 0:
                time.sleep(0.005)
    except MemoryError:
        came = len(held)
        held.clear()
        line.send({"armed": armed, "mib": came, "refused": True})
        return
    line.send({"armed": armed, "mib": len(held), "refused": False})


def rank(seconds: str) -> None:
    """A rank of torchrun: reports itself, and ignores polite requests to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = RankLine.from_environment()
    assert line is not None
    line.send({"rank_variable": int(os.environ["RANK"]), "session": os.getsid(0)})
    time.sleep(float(seconds))


def daemon(seconds: str) -> None:
    """Leaves a process that has neither its parent, its group nor its session, and ends."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(float(seconds))
        os._exit(0)
    os.wait()
    time.sleep(0.1)


def tensors(mib: str, batches: str) -> None:
    """A DataLoader with two workers, whose batches travel in shared memory."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Blocks(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return int(batches)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.full((int(mib) * MIB // 4,), float(index))

    kept = []
    for batch in DataLoader(Blocks(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
        kept.append(batch)
        time.sleep(0.1)


def breed(seconds: str) -> None:
    """Children that start children, in sessions of their own, without end."""
    while True:
        subprocess.Popen([*PROGRAM, "hold", "1", seconds], start_new_session=True)
        time.sleep(0.01)


def main() -> None:
    acts: dict[str, Callable[..., None]] = {act.__name__: act for act in (hold, share, ready, rank, daemon, tensors, breed)}
    acts[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
