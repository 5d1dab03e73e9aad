"""Commands under guard: are all their processes ended, how fast, and is the peak that of all of them?

    python -m tests.benchmarks.commands --ended 200 --peaks 20 --too-large 100

- ended: `torchrun` with two ranks, and a shell script that starts a process in a session of its own, are stopped at a random
  moment. A case passes if no process is left; its time is from the stop until the last one has gone.
- peaks: in a memory group, the peak of the tree is compared with the most that the group's anonymous and shared memory grew,
  less what it grows with a tree of 1 MiB.
- too-large: in a memory group of 1 GiB, two processes in sessions of their own want 700 MiB each. A case passes if the kernel
  killed nothing.

It needs root and a memory cgroup.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from typing import Final

from batchcal.guard.run import ChildLimits
from tests.benchmarks._report import say
from tests.support.cgroups import memory_cgroup
from tests.support.trees import MIB, PROGRAM, REPOSITORY, ending_of, marked

SEED: Final = 5
TREES: Final = (("hold", "400", "1.5"), ("share", "300", "3", "1.5"), ("tensors", "64", "8"))
SMALL: Final = ("hold", "1", "1.5")
TORCHRUN: Final = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


class Stopped(Exception):
    """Ends a run."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("ended", 200), ("peaks", 20), ("too-large", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked, drawn = parser.parse_args(), random.Random(SEED)
    times, left = [], 0
    for number in range(asked.ended):
        seconds, there = stopped(drawn, torchrun=number % 2 == 0)
        times.append(seconds)
        left += there
    # What the supervisor and this program themselves take is in the group's growth, and no part of the tree.
    beside = statistics.median(growth - peak for peak, growth in (peaks(SMALL) for _ in range(3))) if asked.peaks else 0
    ratios = [peak / (growth - beside) for peak, growth in (peaks(TREES[number % len(TREES)]) for number in range(asked.peaks))]
    large = [too_large() for _ in range(asked.too_large)]
    kills = [number for number, _ in large]
    say(
        json.dumps(
            {
                "benchmark": "commands",
                "ended": {"runs": len(times), "left": left, "slowest_s": round(max(times, default=0.0), 3)},
                "peaks": {
                    "runs": len(ratios),
                    "median": round(statistics.median(ratios), 3) if ratios else None,
                    "least": round(min(ratios, default=0.0), 3),
                    "most": round(max(ratios, default=0.0), 3),
                },
                "too_large": {
                    "runs": len(large),
                    "kernel_kills": sum(kills),
                    "ended_otherwise": sum(not by_watchdog for _, by_watchdog in large),
                },
            }
        )
    )
    return 1 if left or sum(kills) else 0


def stopped(drawn: random.Random, *, torchrun: bool) -> tuple[float, int]:
    """(seconds until all were gone, processes left) of a command that is stopped at a random moment."""
    mark, began, asked_at = uuid.uuid4().hex, time.monotonic(), 0.0
    after = drawn.uniform(0.2, 6.0 if torchrun else 1.0)

    def stop() -> None:
        nonlocal asked_at
        if time.monotonic() - began > after:
            asked_at = time.monotonic()
            raise Stopped

    with tempfile.TemporaryDirectory(prefix="bc-") as folder:
        program = str(REPOSITORY / "tests" / "support" / "trees.py")
        argv = (
            (*TORCHRUN, "--log-dir", folder, program, "rank", "100")
            if torchrun
            else ("sh", "-c", "trap '' TERM; setsid sleep 100 & (setsid sleep 100 &); sleep 100")
        )
        with contextlib.suppress(Stopped):
            ending_of(*argv, limits=ChildLimits(neighbours=True), check=stop, mark=mark)
        return time.monotonic() - asked_at, len(marked(mark))


def peaks(tree: tuple[str, ...]) -> tuple[int, int]:
    """(peak of the tree, most that the memory group grew), in a group of its own, bytes."""
    script = (
        "import json; from tests.support.trees import PROGRAM, ending_of; "
        f"ending = ending_of(*PROGRAM, *{tree!r}); "
        "print(json.dumps([ending.exit_status, ending.peak_anonymous_bytes, ending.group_growth_bytes]))"
    )
    with memory_cgroup(4096 * MIB) as group:
        done = group.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
    status, peak, growth = json.loads(done.stdout)
    if status != 0:
        raise RuntimeError(f"{tree}: exit status {status}")
    return int(peak), int(growth)


def too_large() -> tuple[int, bool]:
    """(kernel kills in a group of 1 GiB whose command wants more, True if the watchdog ended the command)."""
    half = f"{' '.join(PROGRAM)} hold 700 60"
    script = (
        "from tests.support.trees import ending_of; "
        f"ending = ending_of('sh', '-c', {f'{half} & setsid {half} & wait'!r}); "
        "raise SystemExit(ending.killed_for != 'memory')"
    )
    with memory_cgroup(1024 * MIB) as group:
        done = group.run([sys.executable, "-c", script], cwd=REPOSITORY)
        return group.oom_kills(), done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
