"""Job of a child, and the messages that it can send while it runs."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from batchcal.guard.channel.messages import ArmRequest, ListenerMessage, PhaseStarted, Unfenced, written
from batchcal.guard.channel.wire import JSON, Channel, Message
from batchcal.guard.limits.fence import data_limit_holds
from batchcal.guard.outcome import Phase

OUTPUT_DESCRIPTOR: Final = 2
Function = Callable[[dict[str, JSON], "ChildContext"], JSON]
"""Function that a child runs. It takes its arguments and the connection to the parent, and returns its result."""


class ChildContext:
    """Connection of the child to its parent."""

    def __init__(self, channel: Channel, directory: Path) -> None:
        self._channel = channel
        self.directory = directory
        """Private to this child; removed with it."""
        self.phase_name: Phase = "start"
        self._reserve: bytearray | None = None

    def phase(self, name: Phase, *, limit_s: float | None = None) -> None:
        """Report the phase to the parent. Each phase has its own deadline, `limit_s` seconds if given."""
        self.phase_name = name
        dump_stacks_on_request()  # again: the user's module may have set its own handler
        self._channel.send(written(PhaseStarted(name, limit_s)))

    def send(self, message: Message) -> None:
        """Send a message to the parent's listener."""
        self._channel.send(written(ListenerMessage(message)))

    def arm(self) -> bool:
        """Request the memory fence from the parent, starting at the current memory. True: it is in force.

        A few MiB are reserved first, so that there is memory for the report when the child reaches the fence.
        """
        self._reserve = bytearray(8 << 20)
        self._channel.send(written(ArmRequest()))
        answer = self._channel.wait()
        if answer is None:
            os._exit(1)  # the parent is gone; no process reads the result
        if answer.get("armed") is not True:
            return False
        if data_limit_holds():
            return True
        self._channel.send(written(Unfenced()))
        return False

    def disarm_reserve(self) -> None:
        """Free the memory that is reserved for the report."""
        self._reserve = None


def dump_stacks_on_request() -> None:
    """Let SIGUSR1 print the stacks of all threads, whatever handler it had before."""
    faulthandler.unregister(signal.SIGUSR1)
    faulthandler.register(signal.SIGUSR1, file=OUTPUT_DESCRIPTOR, all_threads=True)


def name_of(function: Function) -> str:
    """Name by which a child finds the function: `package.module:function`.

    Raises:
        ValueError: it is not a function of a module, but of another function or of a class.
    """
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not module or not name.isidentifier():
        raise ValueError(f"{function!r} is not a function of a module")
    return f"{module}:{name}"


def resolve(name: str) -> Function:
    """Return the function for `package.module:function`, a name that `name_of` made of one of the parent's own functions."""
    module_name, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module_name), attribute)
    if not callable(function):
        raise TypeError(f"{name!r} is not callable")

    def call(arguments: dict[str, JSON], context: ChildContext) -> JSON:
        result: JSON = function(arguments, context)
        return result

    return call


def flush_output() -> None:
    """Flush the output of the user's code before this process exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
