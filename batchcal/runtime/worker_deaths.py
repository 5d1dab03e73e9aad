"""A DataLoader worker that dies must end the training, not hang it.

torch raises the death of a worker from its handler of SIGCHLD, wherever the main thread happens to be. Where that is inside
`Queue.put`, the exception leaves the queue's lock taken, and the iterator's own end then waits for that lock for ever: 1 of 60
workers that died with their first sample (torch 2.13, two cores, loaded).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from multiprocessing import queues
from types import CodeType, FrameType
from typing import Final

from torch.utils.data import _utils

_NOT_INSIDE: Final[CodeType] = queues.Queue.put.__code__

_Handler = Callable[[int, FrameType | None], object]


def raise_outside_of_queues() -> None:
    """Lets torch tell the death of a worker only where no queue is left in pieces. From inside of one it is told later, by
    torch's own look at its workers, every 5 s. To be called before an iterator of workers is made; in the main thread, or it
    does nothing."""
    _utils.signal_handling._set_SIGCHLD_handler()
    told = signal.getsignal(signal.SIGCHLD) if sys.platform != "win32" else None
    if callable(told) and not isinstance(told, _Outside):
        try:
            signal.signal(signal.SIGCHLD, _Outside(told))
        except ValueError:
            return  # not the main thread, where torch has set no handler either


class _Outside:
    """The handler `told`, but for where it would do harm."""

    def __init__(self, told: _Handler) -> None:
        self._told = told

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not _within(frame):
            self._told(number, frame)


def _within(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _NOT_INSIDE:
            return True
        frame = frame.f_back
    return False
