"""Run one command and end all that it started.

Started as `python -P -m batchcal.guard.commands.supervisor CONTROL OUTPUT`, with two descriptors.

A launcher such as torchrun starts every rank in its own session, so no process group contains all of them. This process is
their sub-reaper: a process that loses its parent becomes its child, so all of them are its descendants. It starts the command,
forwards the reports of its processes, and exits when the command and all its descendants have ended. It ends them if its
parent requests it (a message, or SIGUSR2), and if its parent is gone.
"""

from __future__ import annotations

import os
import resource
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

from batchcal.guard.channel.messages import ListenerMessage, MemberArmRequest, PhaseStarted, written
from batchcal.guard.channel.wire import JSON, Channel, Message
from batchcal.guard.children.child import RESULT_NAME, adopt_orphans, follow_parent, volunteer_for_the_kernel, write_file
from batchcal.guard.cleanup.kill import end_descendants, reap
from batchcal.guard.commands.rank import SOCKET_VARIABLE

SOCKET_NAME: Final = "s"
"""Short, since the path of a socket has at most 107 bytes."""
STATUS_NAME: Final = "status.json"
END_LIMIT_S: Final = 4.0
CREDENTIALS: Final = struct.Struct("3i")
"""SO_PEERCRED: process, user, group."""
NOT_FOUND: Final = 127
NOT_ALLOWED: Final = 126
"""The same exit codes as in a shell."""


class Supervisor:
    """Serves one parent over one socket, and the processes of one command over another."""

    def __init__(self, control: Channel, output: int, request: Message) -> None:
        self._control, self._output = control, output
        self._directory = Path(str(request["directory"]))
        self._request = request
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, _Line] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        """Exit status of the command. None: it is running."""
        self._stopped = False
        self._last: dict[str, JSON] = {}
        """The last report of each rank."""

    def run(self) -> None:
        """Run the command. Return when it and all processes that it started are gone."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Handlers and not SIG_IGN, which the command would inherit. Only the parent decides when to stop.
            signal.signal(number, lambda number, frame: None)
        signal.signal(signal.SIGUSR2, lambda number, frame: self._stop())
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._directory / SOCKET_NAME))
            listener.listen(128)
            listener.setblocking(False)
            self._selector.register(self._control, selectors.EVENT_READ)
            if self._control.pending or self._selector.select(timeout=0):  # sent before this process was ready
                self._handle_requests()
            if not self._stopped:
                self._start()
            self._selector.register(wake_read, selectors.EVENT_READ)
            self._selector.register(listener, selectors.EVENT_READ)
            while self._status is None and not self._stopped:
                for key, _ in self._selector.select():
                    if key.fd == wake_read:
                        os.read(wake_read, 512)
                        self._reap()
                    elif key.fd == listener.fileno():
                        self._accept(listener)
                    elif key.fd == self._control.fileno():
                        self._handle_requests()
                    else:
                        self._forward(self._lines[key.fd])
        for line in tuple(self._lines.values()):
            self._forward(line)  # messages that were sent before the end
        remaining: list[JSON] = [*end_descendants(os.getpid(), limit_s=END_LIMIT_S)]
        if self._status == 0:
            write_file(self._directory, RESULT_NAME, {"returned": {"ranks": self._last}})
        write_file(self._directory, STATUS_NAME, {"status": self._status, "left": remaining})
        if self._control.closed:
            # The parent is gone. This process is the last user of its folder.
            shutil.rmtree(self._directory.parent, ignore_errors=True)

    def _stop(self) -> None:
        self._stopped = True

    def _reap(self) -> None:
        ended = reap()
        if self._process is not None and self._process.pid in ended:
            self._status = self._process.returncode = ended[self._process.pid]

    def _start(self) -> None:
        """Start the command. If that fails, `_status` is the exit code of a shell for this error."""
        argv, environment = self._request.get("argv"), self._request.get("environment")
        words = [str(word) for word in argv] if isinstance(argv, list) else []
        variables = {name: str(value) for name, value in environment.items()} if isinstance(environment, dict) else {}
        variables[SOCKET_VARIABLE] = str(self._directory / SOCKET_NAME)
        try:
            self._process = subprocess.Popen(
                words,
                cwd=str(self._request["working_directory"]),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
                preexec_fn=follow_parent,  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:
            os.write(self._output, f"{words[0] if words else 'the command'}: {error.strerror}\n".encode())
            self._status = NOT_ALLOWED if isinstance(error, PermissionError) else NOT_FOUND
            return
        finally:
            os.close(self._output)
        self._control.send(written(PhaseStarted("load", None)))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, user, _ = CREDENTIALS.unpack(peer)
        if user != os.getuid():
            connection.close()
            return
        line = _Line(Channel(connection), pid)
        line.channel.set_blocking(blocking=False, limit_s=0.0)
        self._lines[connection.fileno()] = line
        self._selector.register(line.channel, selectors.EVENT_READ)

    def _forward(self, line: _Line) -> None:
        """Forward the reports of a process of the command."""
        descriptor = line.channel.fileno()
        for message in line.channel.read():
            rank, content = message.get("ready"), message.get("tell")
            if isinstance(rank, int):
                self._control.send(written(PhaseStarted("measure", None)))
                self._control.send(written(MemberArmRequest(line.pid, descriptor)))
            elif isinstance(content, dict):
                self._last[str(message.get("rank", 0))] = content
                self._control.send(written(ListenerMessage({**content, "rank": message.get("rank", 0), "process": line.pid})))
        if line.channel.closed:
            self._selector.unregister(line.channel)
            del self._lines[descriptor]
            line.channel.close()

    def _handle_requests(self) -> None:
        """Handle messages of the parent: the answer to a process that is ready, or the request to end."""
        for message in self._control.read():
            line = message.get("line")
            if isinstance(line, int) and line in self._lines:
                self._lines[line].channel.send({"armed": message.get("armed") is True})
            elif "stop" in message:
                self._stopped = True
        self._stopped = self._stopped or self._control.closed


class _Line:
    """The connection of one process of the command."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        """Process id as given by the kernel."""


def main() -> NoReturn:
    """Take the descriptors from the command line and the request from the control socket."""
    control, output = Channel(socket.socket(fileno=int(sys.argv[1]))), int(sys.argv[2])
    os.set_inheritable(control.fileno(), False)
    adopt_orphans()
    volunteer_for_the_kernel()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    request = control.wait()
    if request is not None:
        Supervisor(control, output, request).run()
    sys.exit(0)


if __name__ == "__main__":
    main()
