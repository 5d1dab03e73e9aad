"""Connection of a process of a measured command to the supervisor.

The connection is a Unix socket. Its path is in the environment, since launchers such as torchrun, accelerate and shells close
the descriptors that they inherit. Imports nothing heavy, since it runs in the user's process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final, Self

from batchcal.guard.channel.wire import Channel, Message

SOCKET_VARIABLE: Final = "BATCHCAL_PROBE_SOCKET"
CONNECT_LIMIT_S: Final = 5.0


class RankLine:
    """Connection of one process. A rank is a rank of torchrun; 0 if there is only one process."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self._channel = Channel(connection)
        self.rank = rank

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """Connect to the supervisor. None: this process is not measured, or its supervisor is gone."""
        path = environ.get(SOCKET_VARIABLE)
        if not path:
            return None
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CONNECT_LIMIT_S)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            return None
        return cls(connection, int(environ.get("RANK") or 0))

    def ready(self) -> bool:
        """Report that the first steps are over and that memory may be limited now. True: this process has a data limit."""
        if not self._channel.send({"ready": self.rank}):
            return False
        try:
            answer = self._channel.wait()
        except TimeoutError:
            return False
        return answer is not None and answer.get("armed") is True

    def send(self, message: Message) -> bool:
        """Send a message to the parent's listener. False: the supervisor is gone."""
        return self._channel.send({"tell": message, "rank": self.rank})

    def close(self) -> None:
        self._channel.close()
