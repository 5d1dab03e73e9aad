"""What a child is asked to run, and what it may say while it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from batchcal.guard.fence import data_limit_holds
from batchcal.guard.outcome import Phase
from batchcal.guard.wire import JSON, Channel, Message

Function = Callable[[dict[str, JSON], "ChildContext"], JSON]
"""What a job names: `package.module:function`, given its arguments and the context."""


class ChildContext:
    """The child's line to its parent."""

    def __init__(self, channel: Channel, directory: Path) -> None:
        self._channel = channel
        self.directory = directory
        """Private to this child; gone with it."""
        self.phase_name: Phase = "start"
        self._reserve: bytearray | None = None

    def phase(self, name: Phase, *, limit_s: float | None = None) -> None:
        """Tells the parent where we are; each phase has its own deadline, `limit_s` seconds if given."""
        self.phase_name = name
        self._channel.send({"phase": name, "limit_s": limit_s})

    def tell(self, message: Message) -> None:
        """Anything that the parent's listener understands."""
        self._channel.send({"tell": message})

    def arm(self) -> bool:
        """Asks the parent to arm the memory fence around what we hold now. True: it is in force.

        A few MiB are put aside first, so that there is room for the report when the fence is hit.
        """
        self._reserve = bytearray(8 << 20)
        self._channel.send({"arm": True})
        answer = self._channel.wait()
        if answer is None:
            os._exit(1)  # the parent is gone; nobody wants our result
        if answer.get("armed") is not True:
            return False
        if data_limit_holds():
            return True
        self._channel.send({"unfenced": True})
        return False

    def disarm_reserve(self) -> None:
        """Gives the room for the report free."""
        self._reserve = None


def resolve(name: str) -> Function:
    """`package.module:function` -> the function. Only batchcal's own modules: a job is never taken from data."""
    module_name, _, attribute = name.partition(":")
    if not module_name.startswith(("batchcal.", "tests.")):
        raise ValueError(f"{name!r} is not one of batchcal's own functions")
    function = getattr(importlib.import_module(module_name), attribute)
    if not callable(function):
        raise TypeError(f"{name!r} is not callable")

    def call(arguments: dict[str, JSON], context: ChildContext) -> JSON:
        result: JSON = function(arguments, context)
        return result

    return call


def flush_output() -> None:
    """What the user's code printed goes out before we do."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
