"""Runs one command under a real limit and says how it ended, by the kernel's own counters."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from tests.support.cgroups import MemoryCgroup, memory_cgroup

ROOT: Final = Path(__file__).resolve().parents[2]
SAMPLE_S: Final = 0.005
Regime = Literal["cgroup", "rlimit-data", "rlimit-as", "none"]


@dataclasses.dataclass(frozen=True)
class Ended:
    """One command under one limit."""

    exit_code: int
    """Negative: the signal that ended it."""
    wall_s: float
    oom_kills: int
    """Processes that the kernel's OOM killer took in the group."""
    group_peak_bytes: int
    """Most anonymous + shared memory in the group, as sampled: a lower bound."""
    timed_out: bool
    stdout: str
    stderr: str

    @property
    def survived(self) -> bool:
        """Ran to its end, and the kernel killed nothing."""
        return self.exit_code == 0 and self.oom_kills == 0 and not self.timed_out


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def run_limited(
    command: Sequence[str],
    *,
    limit_bytes: int | None,
    regime: Regime = "cgroup",
    timeout_s: float = 600.0,
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Ended:
    """`command` in a fresh group of `limit_bytes` (memory and swap), or under an rlimit that makes allocations fail.

    Its process group is killed at `timeout_s`, and nothing it started outlives the call: the group is emptied.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    limited = list(command)
    if regime in {"rlimit-data", "rlimit-as"} and limit_bytes is not None:
        flag = "-d" if regime == "rlimit-data" else "-v"
        limited = ["sh", "-c", f'ulimit {flag} "$0" && exec "$@"', str(limit_bytes // 1024), *command]
    with (
        memory_cgroup(limit_bytes if regime == "cgroup" else None) as group,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as err,
    ):
        began = time.perf_counter()
        process = subprocess.Popen(
            group.command(limited), stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env, cwd=cwd, start_new_session=True
        )
        peak, timed_out = 0, False
        for used in _samples(group):
            peak = max(peak, used)
            if process.poll() is not None:
                break
            if time.perf_counter() - began > timeout_s:
                timed_out = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
        wall_s = time.perf_counter() - began
        kills = group.oom_kills()
        texts = [_end_of((file.seek(0) == 0 and file.read()) or "") for file in (out, err)]
    return Ended(process.returncode, wall_s, kills, peak, timed_out, texts[0], texts[1])


def _samples(group: MemoryCgroup) -> Iterator[int]:
    """Anonymous + shared bytes of the group, again and again."""
    while True:
        stat = group.stat()
        yield stat.get("total_rss", 0) + stat.get("total_shmem", 0)
        time.sleep(SAMPLE_S)


def _end_of(text: str, limit: int = 4_000_000) -> str:
    return text[-limit:]
