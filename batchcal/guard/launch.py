"""Start a child that runs a function: forked from a zygote (ready in 30 ms) or spawned."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from batchcal.core.errors import GuardError
from batchcal.guard.channel.wire import JSON, Channel, Message
from batchcal.guard.children.child import ARGUMENTS_NAME
from batchcal.guard.cleanup.private_folder import PrivateFolder, no_room
from batchcal.guard.job import Function, name_of
from batchcal.machine.allocator import AllocatorPolicy

READY_LIMIT_S: Final = 120.0
"""`import torch` takes a second here and tens of seconds from a cold network disk."""
START_LIMIT_S: Final = 20.0
PACKAGE_PARENT: Final = str(Path(__file__).resolve().parents[2])
"""Entry for PYTHONPATH, so that children import the same batchcal."""


@dataclass(frozen=True)
class FunctionJob:
    """Job of one child: a function with JSON arguments."""

    function: Function
    """Function of a module. The child finds it by its name. The module must load fast if parents import it."""
    arguments: dict[str, JSON]
    working_directory: str
    environment: dict[str, str]
    """Environment of the child's code. (Variables that a process needs before it starts come from the launcher's policy.)"""


class StartedChild:
    """A running child, with the parent's handles to it."""

    def __init__(
        self,
        pid: int,
        watch: int | None,
        control: Channel,
        output: int,
        directory: Path,
        *,
        mark: str = "",
    ) -> None:
        self.pid = pid
        self.mark = mark
        """`NAME=value` in the environment of all descendants of a supervisor, which runs nothing itself. Empty: a child that runs
        a function."""
        self.watch = watch
        """A pidfd. None: the system has none."""
        self.control = control
        self.output = output
        """Read end of the pipe for the child's output."""
        self.directory = directory
        self.exit_status: int | None = None
        """As in subprocess: the exit code, or minus the signal number."""

    def close(self) -> None:
        self.control.close()
        os.close(self.output)
        if self.watch is not None:
            os.close(self.watch)
        shutil.rmtree(self.directory, ignore_errors=True)


class Ender(Protocol):
    """Ends children and reports how they ended."""

    def kill(self, child: StartedChild) -> None:
        """Send SIGKILL to the child and all processes that it started."""
        ...

    def poll(self, child: StartedChild) -> bool:
        """Set `child.exit_status` and return True if the child has ended. Then all processes that it started are dead.

        Raises:
            GuardError: the process that started the child is gone.
        """
        ...


class Launcher(Ender, Protocol):
    """Starts children that run functions."""

    @property
    def name(self) -> Literal["zygote", "spawn"]: ...

    @property
    def overhead_pid(self) -> int | None:
        """Helper process of batchcal that does not run during training."""
        ...

    def start(self, job: FunctionJob) -> StartedChild:
        """Start a child. Raises GuardError if no child could be started."""
        ...

    def is_alive(self) -> bool:
        """Return True if it can start another child."""
        ...

    def close(self) -> None: ...


def start_environment(policy: AllocatorPolicy, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that a process needs before it starts, so that `policy` is in force and its own import of torch
    stays single-threaded."""
    environment = policy.process_environment(environ)
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's OpenBLAS would start a thread when it is imported
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), PACKAGE_PARENT)))
    return environment


class ZygoteLauncher:
    """Forks from its own zygote, one per allocator environment. The constructor starts the zygote, which is ready later."""

    name: Literal["zygote", "spawn"] = "zygote"

    def __init__(self, policy: AllocatorPolicy, environ: Mapping[str, str], preload: Sequence[str] = ()) -> None:
        """`preload`: modules to import before the first fork. A module that starts a thread makes children hang."""
        self._home = PrivateFolder()
        self._ended: dict[int, int] = {}
        self._numbers = itertools.count()
        ours, theirs = socket.socketpair()
        try:
            with theirs, (self._home.path / "zygote.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "batchcal.guard.children.zygote",
                        str(theirs.fileno()),
                        str(self._home.path),
                        *preload,
                    ],
                    pass_fds=(theirs.fileno(),),
                    env=start_environment(policy, environ),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except BaseException as error:  # a signal may come at any line
            ours.close()
            self._home.remove()
            if isinstance(error, OSError):
                raise GuardError("no child process could be started", known=str(error)) from error
            raise
        self._socket = ours
        self._channel = Channel(ours)
        self._ready = False

    def await_ready(self, limit_s: float = READY_LIMIT_S) -> None:
        """Wait until the zygote can fork, at most `limit_s` seconds.

        Raises:
            GuardError: it cannot fork. The launcher is closed.
        """
        if self._ready:
            return
        self._socket.settimeout(max(0.001, min(limit_s, READY_LIMIT_S)))
        try:
            greeting = self._channel.wait()
            late = ""
        except TimeoutError:
            greeting, late = None, f"it was not ready after {limit_s:.1f} s"
        self._socket.settimeout(START_LIMIT_S)
        if greeting is None or greeting.get("threads") != 1:
            log_tail = self._log_tail() or late or "it ended without a message"
            self.close()
            threads = None if greeting is None else greeting.get("threads")
            details = f"it has {threads} threads after importing torch, so its children could hang" if threads else log_tail
            raise GuardError("the process that starts the probes is not usable", known=details)
        self._ready = True

    @property
    def overhead_pid(self) -> int | None:
        return self._process.pid

    def start(self, job: FunctionJob) -> StartedChild:
        self.await_ready()
        directory, request = _directory(self._home, next(self._numbers), job)
        ours, theirs = socket.socketpair()
        output_read, output_write = os.pipe2(os.O_CLOEXEC)
        try:
            self._channel.send(request, (theirs.fileno(), output_write))
        finally:
            theirs.close()
            os.close(output_write)
        started = self._await_started()
        if started is None:
            ours.close()
            os.close(output_read)
            raise GuardError("the process that starts the probes ended unexpectedly", known=self._log_tail())
        pid, watch = started
        return StartedChild(pid, watch, Channel(ours), output_read, directory)

    def kill(self, child: StartedChild) -> None:
        if not self._channel.send({"kill": child.pid}):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def poll(self, child: StartedChild) -> bool:
        if child.exit_status is None:
            self._read(blocking=False)
            if child.pid in self._ended:
                child.exit_status = self._ended.pop(child.pid)
            elif self._channel.closed:
                # The exit status is unknown. The child dies with the zygote (PDEATHSIG); its workers must be ended here.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise GuardError("the process that starts the probes ended unexpectedly", known=self._log_tail())
        return child.exit_status is not None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._channel.close()
        if not self._ready:
            self._process.kill()  # it has no child, and reads the socket only once torch is imported
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._home.remove()

    def _await_started(self) -> tuple[int, int] | None:
        until = time.monotonic() + START_LIMIT_S
        while not self._channel.closed and time.monotonic() < until:
            for message in self._read(blocking=True):
                pid = message.get("started")
                if isinstance(pid, int):
                    return pid, self._channel.take_descriptors(1)[0]
        return None

    def _read(self, *, blocking: bool) -> list[Message]:
        self._channel.set_blocking(blocking, START_LIMIT_S)
        try:
            messages = self._channel.read()
        except TimeoutError:
            messages = []
        for message in messages:
            pid, status = message.get("ended"), message.get("status")
            if isinstance(pid, int) and isinstance(status, int):
                self._ended[pid] = status
        return messages

    def _log_tail(self) -> str:
        try:
            return (self._home.path / "zygote.log").read_text(errors="replace")[-2000:].strip()
        except OSError:
            return ""


def start_module(
    module: str, environment: Mapping[str, str], request: Message, directory: Path, *, mark: str = ""
) -> tuple[subprocess.Popen[bytes], StartedChild]:
    """Start `python -m MODULE CONTROL OUTPUT` (two descriptors) in its own session. Send `request` on its control socket.

    Args:
        directory: private to the process; removed if the process cannot be started.
        mark: see `StartedChild`.

    Raises:
        GuardError: the process could not be started.
    """
    ours, theirs = socket.socketpair()
    output_read, output_write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(output_write)],
            pass_fds=(theirs.fileno(), output_write),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output_write,
            stderr=output_write,
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        os.close(output_read)
        shutil.rmtree(directory, ignore_errors=True)
        raise GuardError("no child process could be started", known=str(error)) from error
    finally:
        theirs.close()
        os.close(output_write)
    control = Channel(ours)
    control.send(request)
    watch = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    return process, StartedChild(process.pid, watch, control, output_read, directory, mark=mark)


class SpawnLauncher:
    """Starts a new interpreter for every child. It takes one second per child, and works on every system with Python."""

    name: Literal["zygote", "spawn"] = "spawn"
    overhead_pid: int | None = None

    def __init__(self, policy: AllocatorPolicy, environ: Mapping[str, str]) -> None:
        self._home = PrivateFolder()
        self._numbers = itertools.count()
        self._environment = start_environment(policy, environ)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, job: FunctionJob) -> StartedChild:
        directory, request = _directory(self._home, next(self._numbers), job)
        process, started = start_module("batchcal.guard.children.child", self._environment, request, directory)
        self._processes[process.pid] = process
        return started

    def kill(self, child: StartedChild) -> None:
        if child.exit_status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    def poll(self, child: StartedChild) -> bool:
        if child.exit_status is None:
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.kill(child)  # the rest of its group, while the zombie still holds the pid
            child.exit_status = self._processes.pop(child.pid).wait()
        return True

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._home.remove()


def _directory(home: PrivateFolder, number: int, job: FunctionJob) -> tuple[Path, Message]:
    """Create a folder for one child. Return it with the request for the child."""
    directory = home.path / f"child-{number}"
    try:
        directory.mkdir(mode=0o700)
        return directory, request_of(job, directory)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise no_room(error) from error


def request_of(job: FunctionJob, directory: Path) -> Message:
    """Return the request for the child. Its arguments are written to its directory, since they may be long."""
    (directory / ARGUMENTS_NAME).write_text(json.dumps(job.arguments), encoding="utf-8")
    return {
        "function": name_of(job.function),
        "directory": str(directory),
        "working_directory": job.working_directory,
        "environment": dict(job.environment),
    }
