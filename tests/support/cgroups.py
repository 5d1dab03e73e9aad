"""Real memory cgroups for tests: the real limit, the real OOM killer, the real counters.

cgroup v1 only: there a fresh group under our own takes processes at once. On v2 a group with processes may not hand its
memory controller down, so a test cannot make one without moving everybody else first; `needs_memory_cgroup` then skips.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

MOUNT: Final = Path("/sys/fs/cgroup/memory")
_ENTER: Final = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_numbers: Final = itertools.count()


class MemoryCgroup:
    """One fresh group. `limit_bytes` holds for memory and for memory + swap."""

    def __init__(self, path: Path, limit_bytes: int | None) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        if limit_bytes is not None:
            self.set_limit(limit_bytes)

    def set_limit(self, limit_bytes: int) -> None:
        """Moves the limit, also under running processes. OSError (EBUSY) where what they hold cannot be reclaimed."""
        # memory may never be above memory + swap, so the order depends on the direction.
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if self.limit_bytes is not None and limit_bytes > self.limit_bytes:
            names.reverse()
        for name in names:
            file = self.path / name
            if file.exists():  # no memsw where the kernel does not account swap
                file.write_text(str(limit_bytes), encoding="ascii")
        self.limit_bytes = limit_bytes

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` as a command that is in the group before its first instruction; for an own Popen."""
        return ["sh", "-c", _ENTER, str(self.path), *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 120.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        stdin: str | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `argv` inside and waits; stdout and stderr are kept apart, as text."""
        return subprocess.run(
            self.command(argv), timeout=timeout, env=env, cwd=cwd, input=stdin, check=check, capture_output=True, text=True
        )

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        start_new_session: bool = False,
    ) -> subprocess.Popen[str]:
        """Starts `argv` inside; stdin, stdout and stderr are pipes."""
        return subprocess.Popen(
            self.command(argv),
            env=env,
            cwd=cwd,
            start_new_session=start_new_session,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def oom_kills(self) -> int:
        """The kernel's own count of processes that its OOM killer took in this very group, those below it not counted (v1)."""
        lines = (self.path / "memory.oom_control").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def usage_bytes(self) -> int:
        return self._number("memory.usage_in_bytes")

    def peak_bytes(self) -> int:
        """Most charged at once since the group began or since `reset_peak`, page cache included."""
        return self._number("memory.max_usage_in_bytes")

    def reset_peak(self) -> None:
        (self.path / "memory.max_usage_in_bytes").write_text("0", encoding="ascii")

    def stat(self) -> dict[str, int]:
        """memory.stat; the `total_` lines count the groups below too."""
        lines = (self.path / "memory.stat").read_text(encoding="ascii").splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}

    def pids(self) -> list[int]:
        """Processes inside, those of groups below not counted."""
        return [int(line) for line in (self.path / "cgroup.procs").read_text(encoding="ascii").split()]

    def remove(self, *, timeout_s: float = 10.0) -> None:
        """Ends whatever is still inside, then removes the group. A group below must have been removed before."""
        until = time.monotonic() + timeout_s
        while True:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.path.rmdir()
                return
            except OSError:  # a killed process leaves its group only when it is gone altogether
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _number(self, name: str) -> int:
        return int((self.path / name).read_text(encoding="ascii"))


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int | None, *, parent: Path | MemoryCgroup | None = None) -> Iterator[MemoryCgroup]:
    """A fresh memory group of `limit_bytes` (None: no limit of its own) below `parent` (default: the group that we are in)."""
    above = parent.path if isinstance(parent, MemoryCgroup) else parent or own_group()
    path = above / f"batchcal-test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    group = MemoryCgroup(path, None)
    try:
        if limit_bytes is not None:
            group.set_limit(limit_bytes)
        yield group
    finally:
        group.remove()


def own_group() -> Path:
    """The v1 memory group that this process is in."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return MOUNT / path.lstrip("/")
    raise FileNotFoundError("this process is in no v1 memory group")


def _missing() -> str:
    """Why no memory group can be made here; empty where one can."""
    try:
        path = own_group() / f"batchcal-test-{os.getpid()}-trial"
        path.mkdir()
        path.rmdir()
    except OSError as error:
        return f"needs root and a writable cgroup v1 memory controller ({error})"
    return ""


_why_not: Final = _missing()
needs_memory_cgroup: Final = pytest.mark.skipif(bool(_why_not), reason=_why_not or "a memory cgroup can be made here")
"""For tests that meet the real limit; use it together with `@pytest.mark.cgroup`."""
