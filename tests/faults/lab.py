"""Where faults are tried: a measuring process in a real memory group, a mount namespace, under a rlimit, a preloaded library.

The process outlives every fault, or the test has failed; the kernel's OOM killer has taken nobody, or the test has failed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from batchcal.calibration.schema import Calibration, Mode
from batchcal.guard.outcome import Outcome
from batchcal.measure.children.probe import Examination, Observation
from batchcal.workload.spec.reference import Scalar
from tests.faults.server import Ask, Failed, Reply
from tests.support.cgroups import MemoryCgroup, memory_cgroup

ROOT: Final = Path(__file__).resolve().parents[2]
REPLY_LIMIT_S: Final = 150.0


def ask(
    task: str,
    batch: int | None = None,
    *,
    mode: Mode = "train",
    workers: int = 0,
    threads: int = 1,
    samples: int = 4,
    deadline_s: float = 30.0,
    budget_bytes: int = 0,
    directory: Path = ROOT,
    **arguments: Scalar,
) -> Ask:
    """A factory of tests/faults/tasks.py, or a SPEC, to be run at `batch`; what is not named here goes to the factory."""
    return Ask(
        spec=task if ":" in task else f"tests.faults.tasks:{task}",
        directory=str(directory),
        arguments=arguments,
        batch=batch,
        mode=mode,
        workers=workers,
        threads=threads,
        samples=samples,
        deadline_s=deadline_s,
        budget_bytes=budget_bytes,
    )


class Lab:
    """One measuring process."""

    def __init__(self, process: subprocess.Popen[bytes], group: MemoryCgroup | None, log: Path) -> None:
        self.process = process
        self.group = group
        self._log = log

    def begin(self, asked: Ask) -> None:
        """Sends a request; `reply` waits for what comes of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(asked.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def reply(self) -> Reply:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], REPLY_LIMIT_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            pytest.fail(f"{'the measuring process is gone' if ready else 'it hangs'}: {self._log.read_text()[-3000:]}")
        return Reply.model_validate_json(line)

    def report(self) -> Observation:
        """What came of the probe that was begun."""
        reply = self.reply()
        if reply.report is None:
            pytest.fail(f"no report: {reply.failed}")
        return reply.report

    def measure(self, asked: Ask) -> Observation:
        self.begin(asked)
        return self.report()

    def outcome(self, asked: Ask) -> Outcome:
        return self.measure(asked).outcome

    def examine(self, asked: Ask) -> Examination | Failed:
        self.begin(asked)
        reply = self.reply()
        found = reply.examination or reply.failed
        assert found is not None
        return found

    def calibrate(
        self, asked: Ask, output: Path, *, max_probes: int | None = None, max_batch: int | None = None, time_limit_s: float = 60.0
    ) -> Calibration | Failed:
        limits = {"output": str(output), "max_probes": max_probes, "max_batch": max_batch, "time_limit_s": time_limit_s}
        self.begin(asked.model_copy(update=limits))
        reply = self.reply()
        found = reply.calibration or reply.failed
        assert found is not None
        return found


@contextlib.contextmanager
def lab(
    limit_bytes: int | None = None,
    *,
    prefix: Sequence[str] = (),
    program: Sequence[str] = ("-m", "tests.faults.server"),
    environment: Mapping[str, str] | None = None,
    kernel_kills: int = 0,
) -> Iterator[Lab]:
    """A lab in a memory group of `limit_bytes` (None: in ours). `prefix`: a command that runs another, such as unshare -m;
    `program`: what python runs.

    Whatever was tried: at the end the process must still be there and leave when it is told to, and the kernel must have killed
    no more than `kernel_kills`.
    """
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_cgroup(limit_bytes)) if limit_bytes is not None else None
        home = Path(tempfile.mkdtemp(prefix="bc-lab-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        command = [*prefix, sys.executable, *program]
        homes = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(home))
        # Untraced: coverage's memory and time are not the engine's, and the tests of its rooms cover the same lines.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}
        env = {**ours, **homes, "PYTHONPATH": str(ROOT), **(environment or {})}
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                group.command(command) if group is not None else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )
        with process:
            stack.callback(kill_group, process.pid)
            yield Lab(process, group, home / "log")
            if process.poll() is None:
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(20) == 0, (home / "log").read_text()[-3000:]
        if group is not None:
            assert group.oom_kills() <= kernel_kills


def kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def waited_for(find: Callable[[], int | None], limit_s: float = 30.0) -> int:
    """The process id that `find` finds in the end."""
    until = time.monotonic() + limit_s
    while (found := find()) is None:
        if time.monotonic() > until:
            pytest.fail("nobody came")
        time.sleep(0.005)
    return found


def pid_in(path: Path) -> int:
    """The process id that a task writes there."""
    return waited_for(lambda: int(path.read_text()) if path.exists() else None)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid: int, limit_s: float = 2.0) -> bool:
    """Whether the process is no more, or a zombie that is no longer ours to reap, within so many seconds."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.005)
    return False
