"""What a child is asked to run, and what it may say while it runs."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from batchcal.guard.fence import data_limit_holds
from batchcal.guard.messages import ArmRequest, ListenerMessage, PhaseStarted, Unfenced, written
from batchcal.guard.outcome import Phase
from batchcal.guard.wire import JSON, Channel, Message

OUTPUT_DESCRIPTOR: Final = 2
Function = Callable[[dict[str, JSON], "ChildContext"], JSON]
"""What a child runs: given its arguments and its line to the parent, it returns its answer."""


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
        dump_stacks_on_request()  # again: the user's module may have set a handler of its own
        self._channel.send(written(PhaseStarted(name, limit_s)))

    def tell(self, message: Message) -> None:
        """Anything that the parent's listener understands."""
        self._channel.send(written(ListenerMessage(message)))

    def arm(self) -> bool:
        """Asks the parent to arm the memory fence around what we hold now. True: it is in force.

        A few MiB are put aside first, so that there is room for the report when the fence is hit.
        """
        self._reserve = bytearray(8 << 20)
        self._channel.send(written(ArmRequest()))
        answer = self._channel.wait()
        if answer is None:
            os._exit(1)  # the parent is gone; nobody wants our result
        if answer.get("armed") is not True:
            return False
        if data_limit_holds():
            return True
        self._channel.send(written(Unfenced()))
        return False

    def disarm_reserve(self) -> None:
        """Gives the room for the report free."""
        self._reserve = None


def dump_stacks_on_request() -> None:
    """Lets SIGUSR1 print where every thread stands, whatever handler it had before."""
    faulthandler.unregister(signal.SIGUSR1)
    faulthandler.register(signal.SIGUSR1, file=OUTPUT_DESCRIPTOR, all_threads=True)


def name_of(function: Function) -> str:
    """`package.module:function`, by which a child finds it.

    Raises:
        ValueError: it is not a function of a module, but of another function or of a class.
    """
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not module or not name.isidentifier():
        raise ValueError(f"{function!r} is not a function of a module")
    return f"{module}:{name}"


def resolve(name: str) -> Function:
    """`package.module:function` -> the function. A name is what `name_of` made of a function of the parent's own."""
    module_name, _, attribute = name.partition(":")
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
