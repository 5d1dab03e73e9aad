"""Connection between parent, zygote and child: JSON lines over a Unix socket. User output is never sent here."""

from __future__ import annotations

import json
import socket
from typing import Final

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
Message = dict[str, JSON]

LINE_LIMIT: Final = 1 << 20
"""Longest line, bytes. A longer line means a broken peer. Results are sent in files, not here."""


class Channel:
    """One end of a line-based connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._descriptors: list[int] = []
        self._pending: list[Message] = []
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_blocking(self, blocking: bool, limit_s: float) -> None:
        """Set if `read` waits for data. It waits at most `limit_s` seconds, then it raises TimeoutError."""
        self._socket.settimeout(limit_s if blocking else 0.0)

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> bool:
        """Send a message. False: the peer is gone."""
        data = json.dumps(message).encode() + b"\n"
        try:
            if descriptors:
                sent = socket.send_fds(self._socket, [data], list(descriptors))
                data = data[sent:]
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionError):
            return False
        return True

    def read(self) -> list[Message]:
        """Return the pending messages, else read once (blocking if the socket is) and return the complete lines.

        Set `closed` at the end of the stream.
        """
        if self._pending:
            pending, self._pending = self._pending, []
            return pending
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 16)
        except (BlockingIOError, InterruptedError):
            return []
        except ConnectionError:
            data, descriptors = b"", []
        self._descriptors.extend(descriptors)
        if not data:
            self.closed = True
        return self._lines(data)

    def take_descriptors(self, count: int) -> list[int]:
        """Take file descriptors that arrived with the messages read so far, oldest first."""
        oldest, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return oldest

    def wait(self) -> Message | None:
        """Wait for one message. None: the peer is gone. Messages that arrived with it are kept for the next call."""
        while self._pending or not self.closed:
            messages = self.read()
            if messages:
                self._pending = messages[1:]
                return messages[0]
        return None

    @property
    def pending(self) -> bool:
        """True if messages were received that no call has returned yet. A selector does not report them."""
        return bool(self._pending)

    def close(self) -> None:
        self._socket.close()

    def _lines(self, data: bytes) -> list[Message]:
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > LINE_LIMIT:
            self._buffer, self.closed = b"", True
        messages: list[Message] = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                messages.append(value)
        return messages
