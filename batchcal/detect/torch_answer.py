"""What only a process that loaded torch can tell. It is asked in a child, which answers in JSON and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from batchcal.core.errors import GuardError
from batchcal.core.values import Frozen
from batchcal.detect import thread_pools
from batchcal.detect.accelerator import TorchDevices, describe
from batchcal.detect.environment import Accelerator, ThreadPool

if TYPE_CHECKING:  # what a child needs; a process that only detects does without sockets
    from batchcal.guard.job import ChildContext
    from batchcal.guard.wire import JSON

TIMEOUT_S: Final = 120.0
"""`import torch` takes a second from a warm disk, tens of seconds from a cold one; a driver that starts takes some more."""


class TorchAnswer(Frozen):
    """The child's answer."""

    accelerators: tuple[Accelerator, ...] = ()
    thread_pools: tuple[ThreadPool, ...] = ()
    cuda: str = ""
    """Version of CUDA (or ROCm) that torch was built with; empty: none."""
    problems: tuple[str, ...] = ()
    """Devices that would not answer, and why."""


def ask(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Runs in the child. Takes no arguments; returns a TorchAnswer as JSON."""
    import torch

    devices, problems = describe(TorchDevices())
    answer = TorchAnswer(
        accelerators=devices,
        thread_pools=thread_pools.ask(),
        cuda=torch.version.cuda or torch.version.hip or "",
        problems=problems,
    )
    reply: JSON = answer.model_dump(mode="json")
    return reply


def ask_in_child(*, timeout_s: float = TIMEOUT_S) -> TorchAnswer:
    """Asks in a fresh process and waits for the answer.

    Raises:
        GuardError: the child gave none, or not one of ours.
    """
    from batchcal.guard.call import call

    reply = call(ask, timeout_s=timeout_s)
    try:
        return TorchAnswer.model_validate(reply)
    except ValidationError as error:
        raise GuardError("the child that was asked about torch gave an odd answer", known=str(error)) from error
