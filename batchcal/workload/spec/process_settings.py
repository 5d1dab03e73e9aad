"""Settings of the process that batchcal owns and that a user's module changes when it is imported: threads and signals."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import torch

from batchcal.core.signals import SIGNALS, signal_name

_INTEROP: Final = "set_num_interop_threads"
_Handler = Callable[[int, FrameType | None], object] | int | None


class SettingReplaced(UserWarning):
    """The user's module sets something that the plan, or batchcal itself, decides."""


def warned(text: str) -> None:
    """Shows a note as a warning, also where the user's module has made every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, SettingReplaced, stacklevel=3)


@contextmanager
def preserve_settings(name: str, note: Callable[[str], None] = warned) -> Iterator[None]:
    """Within it, the module `name` is imported and its factory called. Afterwards the process has the threads and the handlers of
    SIGINT and SIGTERM that it had before: the plan decides the former, a checkpoint and the exit code need the latter. `note`
    gets a line for each that was replaced.

    torch takes the number of threads between operators once in a process, and refuses a second call: the user's has no effect.
    """
    intra_op = torch.get_num_threads()
    set_interop: Callable[[int], None] = torch.set_num_interop_threads
    handlers = _handlers()
    interop: list[int] = []
    setattr(torch, _INTEROP, interop.append)
    try:
        yield
    finally:
        setattr(torch, _INTEROP, set_interop)
        changed = torch.get_num_threads()
        if changed != intra_op:
            torch.set_num_threads(intra_op)
        replaced = [number for number, handler in _handlers().items() if handler is not handlers[number]]
        for number in replaced:
            before = handlers[number]
            signal.signal(number, signal.SIG_DFL if before is None else before)
    if changed != intra_op:
        note(f"{name} sets {changed} threads, which has no effect: {intra_op} are used")
    if interop and interop[-1] != torch.get_num_interop_threads():
        used = torch.get_num_interop_threads()
        note(f"{name} sets {interop[-1]} threads between operators, which has no effect: {used} are used")
    if replaced:
        names = " and ".join(map(signal_name, replaced))
        note(f"{name} sets a handler of {names}, which has no effect: these signals end the training in batchcal")


def _handlers() -> dict[signal.Signals, _Handler]:
    """None are ours to set outside of the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    return {number: signal.getsignal(number) for number in SIGNALS} if is_main else {}
