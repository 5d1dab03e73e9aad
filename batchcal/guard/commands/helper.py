"""A long-running helper process: it reads lines of text and writes lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from batchcal.core.errors import GuardError
from batchcal.guard.cleanup.kill import stop_and_kill
from batchcal.machine.meters import descendants

READ_BYTES: Final = 1 << 16
LOG_SHOWN: Final = 2000
"""Bytes."""


class HelperProcess:
    """`python -m MODULE` in its own session: Ctrl-C goes to the process that started it, which informs the helper.

    Args:
        directory: its working directory.
        log: the file to which its stderr is appended.

    Raises:
        GuardError: it could not be started, or its log cannot be written.
    """

    def __init__(self, module: str, *, directory: str, log: Path) -> None:
        self._log = log
        self._unread = b""
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            stderr = log.open("ab")
        except OSError as error:
            raise GuardError(f"the log {log} cannot be written", known=error.strerror or str(error)) from error
        try:
            with stderr:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=directory,
                    start_new_session=True,
                )
        except OSError as error:
            raise GuardError("no child process could be started", known=str(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self.stdout = self._process.stdout
        """For a selector: see `read`."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: str) -> None:
        """Send `line`. Does nothing if the process has ended."""
        with contextlib.suppress(OSError, ValueError):
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()

    def read(self) -> list[dict[str, object]] | None:
        """Wait for data and return the complete messages. None: the process has closed its stdout."""
        data = os.read(self.stdout.fileno(), READ_BYTES)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [message for line in lines if isinstance(message := json.loads(line), dict)]

    def wait(self, timeout_s: float) -> int:
        """Return its exit status, as `close` does. After `timeout_s` seconds it is killed with all its descendants."""
        try:
            self._process.wait(max(timeout_s, 0.0))
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGSTOP)  # it starts no further process
            stop_and_kill((*descendants(self.pid), self.pid))
        return self.close()

    def close(self) -> int:
        """Wait until it has ended and return its exit status. Below 0: minus the signal number."""
        status = self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self.stdout.close()
        return status

    def log_tail(self) -> str:
        """End of its log."""
        try:
            return self._log.read_bytes()[-LOG_SHOWN:].decode(errors="replace").strip()
        except OSError:
            return ""
