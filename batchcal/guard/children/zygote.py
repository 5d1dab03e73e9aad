"""The zygote: a process that imported only torch, and forks children that are ready in 30 ms instead of one second.

`python -m batchcal.guard.children.zygote FD HOME MODULE...`, exec'd once per allocator environment. It imports the modules, runs
no torch operation and stays single-threaded: after one multi-threaded operation here, every child hangs in OpenMP. It reaps its
children (and, as a subreaper, their orphans), kills the rest of a child's group before the pid is free, and ends with its
parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final, NoReturn

from batchcal.guard.channel.wire import Channel, Message
from batchcal.guard.children.child import PR_SET_PDEATHSIG, adopt_orphans, run_child
from batchcal.guard.cleanup.kill import kill_group
from batchcal.guard.cleanup.shared_names import sweep_shared_memory
from batchcal.machine.meters import descendants, thread_count

ORPHANS_LINGER_S: Final = 1.0


class Zygote:
    """Serves one parent over one socket until the socket closes."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = Channel(connection)
        self._children: set[int] = set()

    def serve(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(wake_read, selectors.EVENT_READ)
            while not self._channel.closed:
                for key, _ in selector.select():
                    if key.fd == wake_read:
                        os.read(wake_read, 512)
                        self._reap()
                    else:
                        for request in self._channel.read():
                            self._answer(request)
        self._end()

    def _answer(self, request: Message) -> None:
        victim = request.get("kill")
        if isinstance(victim, int):
            if victim in self._children:  # not reaped yet, so the group is still its own
                kill_group(victim)
        else:
            self._fork(request)

    def _fork(self, request: Message) -> None:
        control, output = self._channel.take_descriptors(2)
        child = os.fork()
        if child == 0:
            self._channel.close()
            run_child(request, control, output)
        os.close(control)
        os.close(output)
        self._children.add(child)
        watch = os.pidfd_open(child)
        self._channel.send({"started": child}, (watch,))
        os.close(watch)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid in self._children:
                # The zombie still holds its pid, so this cannot be the group of another process.
                kill_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            if ended.si_pid in self._children:
                self._children.discard(ended.si_pid)
                self._channel.send({"ended": ended.si_pid, "status": os.waitstatus_to_exitcode(status)})
                self._end_orphans()

    def _end_orphans(self) -> None:
        """Kill processes that left the group of an ended child (a daemon, its own session). As their subreaper, the zygote is now
        their parent, so no other process can have their pids."""
        if self._children:
            return  # an orphan may belong to one of them
        for orphan in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGKILL)

    def _end(self) -> None:
        """The parent is gone: end all children and their descendants, and remove their names in /dev/shm."""
        family = {*self._children, *descendants(os.getpid())}
        for child in self._children:
            kill_group(child)
        self._children.clear()
        self._end_orphans()
        until = time.monotonic() + ORPHANS_LINGER_S
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < until:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.002)
        sweep_shared_memory(family)


def preload(names: Sequence[str]) -> None:
    """Only import modules of packages that are installed."""
    for name in names:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise the first collection in a child unshares 69 MB of the zygote's memory


@contextlib.contextmanager
def leaving_with_parent(connection: socket.socket, home: str) -> Iterator[None]:
    """While no code reads the socket, as during an import from a cold disk, the kernel signals that the parent has ended."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        shutil.rmtree(home, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGUSR2, leave)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGUSR2, 0, 0, 0)
    with contextlib.suppress(BlockingIOError):
        if not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):  # it ended before the prctl call
            leave(signal.SIGTERM, None)
    yield
    libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def main() -> NoReturn:
    adopt_orphans()
    connection, home = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    # systemd and SLURM send it to every process of a job. The parent ends cleanly and needs the zygote. Children accept it again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with leaving_with_parent(connection, home):
            preload(sys.argv[3:])
        channel = Channel(connection)
        channel.send({"ready": True, "threads": thread_count()})
        Zygote(connection).serve()
    finally:
        connection.close()
        shutil.rmtree(home, ignore_errors=True)  # the parent does this too, unless it was killed
    os._exit(0)  # the parent waits: clearing torch's modules one by one takes a fifth of a second


if __name__ == "__main__":
    main()
