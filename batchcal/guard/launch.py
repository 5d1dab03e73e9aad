"""Starting a child: through a zygote (forked, ready in 30 ms) or spawned. THE one place that starts a process."""

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from batchcal.core.errors import GuardError
from batchcal.guard.allocator import AllocatorPolicy
from batchcal.guard.child import ARGUMENTS_NAME
from batchcal.guard.home import Home, no_room
from batchcal.guard.wire import JSON, Channel, Message

READY_LIMIT_S: Final = 120.0
"""`import torch` takes a second here and tens of seconds from a cold network disk."""
START_LIMIT_S: Final = 20.0


@dataclass(frozen=True)
class Job:
    """What one child is to run: a function of batchcal's own, by name, with arguments that are JSON."""

    function: str
    arguments: dict[str, JSON]
    working_directory: str
    environment: dict[str, str]
    """What the child's code sees. (What a process must have before it starts comes from the launcher's policy.)"""


class Started:
    """A running child, with what the parent holds of it."""

    def __init__(self, pid: int, watch: int | None, control: Channel, output: int, directory: Path) -> None:
        self.pid = pid
        self.watch = watch
        """A pidfd, or None where the system has none."""
        self.control = control
        self.output = output
        """Read end of what the child prints."""
        self.directory = directory
        self.exit_status: int | None = None
        """As subprocess gives it: the exit code, or minus the signal."""

    def close(self) -> None:
        self.control.close()
        os.close(self.output)
        if self.watch is not None:
            os.close(self.watch)
        shutil.rmtree(self.directory, ignore_errors=True)


class Launcher(Protocol):
    """Starts children and tells how they ended."""

    @property
    def name(self) -> Literal["zygote", "spawn"]: ...

    @property
    def overhead_pid(self) -> int | None:
        """A helper process of ours that will not be there during training."""
        ...

    def start(self, job: Job) -> Started:
        """Raises GuardError where no child could be started."""
        ...

    def kill(self, child: Started) -> None:
        """SIGKILL to the child and everything it started."""
        ...

    def poll(self, child: Started) -> bool:
        """Fills `child.exit_status` where it has ended (then its whole group is dead); True if it has."""
        ...

    def is_alive(self) -> bool:
        """Whether it can start another child."""
        ...

    def close(self) -> None: ...


def start_environment(policy: AllocatorPolicy, environ: Mapping[str, str]) -> dict[str, str]:
    """What a process must have in its environment before it starts, so that `policy` is in force and its own import of torch
    stays single-threaded."""
    environment = policy.process_environment(environ)
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's OpenBLAS would start a thread when it is imported
    package_parent = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), package_parent)))
    if policy.kind == "mallopt":
        environment["BATCHCAL_ZYGOTE_MALLOPT"] = policy.name
    return environment


class ZygoteLauncher:
    """Forks from a zygote of its own, one per allocator environment. It is begun here, and ready some time later."""

    name: Literal["zygote", "spawn"] = "zygote"

    def __init__(self, policy: AllocatorPolicy, environ: Mapping[str, str]) -> None:
        self._home = Home()
        self._ended: dict[int, int] = {}
        self._numbers = itertools.count()
        ours, theirs = socket.socketpair()
        try:
            with theirs, (self._home.path / "zygote.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "batchcal.guard.zygote", str(theirs.fileno()), str(self._home.path)],
                    pass_fds=(theirs.fileno(),),
                    env=start_environment(policy, environ),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            self._home.remove()
            raise GuardError("no child process could be started", known=str(error)) from error
        self._socket = ours
        self._channel = Channel(ours)
        self._ready = False

    def await_ready(self) -> None:
        """Waits until it can fork.

        Raises:
            GuardError: it cannot, and is closed.
        """
        if self._ready:
            return
        self._socket.settimeout(READY_LIMIT_S)
        try:
            hello = self._channel.wait()
        except TimeoutError:
            hello = None
        self._socket.settimeout(START_LIMIT_S)
        if hello is None or hello.get("threads") != 1:
            log_tail = self._log_tail() or "it ended without a word"
            self.close()
            threads = None if hello is None else hello.get("threads")
            known = f"it has {threads} threads after importing torch, so its children could hang" if threads else log_tail
            raise GuardError("the process that batchcal forks its probes from is not usable", known=known)
        self._ready = True

    @property
    def overhead_pid(self) -> int | None:
        return self._process.pid

    def start(self, job: Job) -> Started:
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
            raise GuardError("the process that batchcal forks its probes from has died", known=self._log_tail())
        pid, watch = started
        return Started(pid, watch, Channel(ours), output_read, directory)

    def kill(self, child: Started) -> None:
        if not self._channel.send({"kill": child.pid}):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def poll(self, child: Started) -> bool:
        if child.exit_status is None:
            self._read(blocking=False)
            if child.pid in self._ended:
                child.exit_status = self._ended.pop(child.pid)
            elif self._channel.closed:
                # Nobody can tell how it ended. It dies with the zygote (PDEATHSIG); its workers are ours to end.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise GuardError("the process that batchcal forks its probes from has died", known=self._log_tail())
        return child.exit_status is not None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._channel.close()
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


class SpawnLauncher:
    """A new interpreter for every child: a second each, but it works wherever Python does."""

    name: Literal["zygote", "spawn"] = "spawn"
    overhead_pid: int | None = None

    def __init__(self, policy: AllocatorPolicy, environ: Mapping[str, str]) -> None:
        self._home = Home()
        self._numbers = itertools.count()
        self._environment = start_environment(policy, environ)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> Started:
        directory, request = _directory(self._home, next(self._numbers), job)
        ours, theirs = socket.socketpair()
        output_read, output_write = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "batchcal.guard.child", str(theirs.fileno()), str(output_write)],
                pass_fds=(theirs.fileno(), output_write),
                env=self._environment,
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
        self._processes[process.pid] = process
        control = Channel(ours)
        control.send(request)
        watch = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        return Started(process.pid, watch, control, output_read, directory)

    def kill(self, child: Started) -> None:
        if child.exit_status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    def poll(self, child: Started) -> bool:
        if child.exit_status is None:
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.kill(child)  # what is left of its group, while the zombie still holds the pid
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


def _directory(home: Home, number: int, job: Job) -> tuple[Path, Message]:
    """A new folder for one child, with what the child is to be sent."""
    directory = home.path / f"child-{number}"
    try:
        directory.mkdir(mode=0o700)
        return directory, request_of(job, directory)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise no_room(error) from error


def request_of(job: Job, directory: Path) -> Message:
    """What travels to the child; its arguments lie in its directory, since they may be long."""
    (directory / ARGUMENTS_NAME).write_text(json.dumps(job.arguments), encoding="utf-8")
    return {
        "function": job.function,
        "directory": str(directory),
        "working_directory": job.working_directory,
        "environment": dict(job.environment),
    }
