"""Facts that only a process with torch can read. A child reads them, returns them as JSON and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from batchcal.core.errors import GuardError
from batchcal.core.values import Frozen
from batchcal.detect import thread_pools
from batchcal.detect.accelerator import TorchDevices, describe
from batchcal.detect.environment import Accelerator, ThreadPool

if TYPE_CHECKING:  # only a child needs these; a process that only detects needs no sockets
    from batchcal.guard.channel.wire import JSON
    from batchcal.guard.job import ChildContext

TIMEOUT_S: Final = 120.0
"""`import torch` takes a second from a warm disk, tens of seconds from a cold one. The start of a driver takes some more."""


class TorchAnswer(Frozen):
    """The result of the child."""

    accelerators: tuple[Accelerator, ...] = ()
    thread_pools: tuple[ThreadPool, ...] = ()
    cuda: str = ""
    """Version of CUDA (or ROCm) that torch was built with; empty: none."""
    problems: tuple[str, ...] = ()
    """Devices that did not respond, and why."""


def query_torch(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Run in the child. Takes no arguments and returns a TorchAnswer as JSON."""
    import torch

    devices, problems = describe(TorchDevices())
    answer = TorchAnswer(
        accelerators=devices,
        thread_pools=thread_pools.query_pools(),
        cuda=torch.version.cuda or torch.version.hip or "",
        problems=problems,
    )
    reply: JSON = answer.model_dump(mode="json")
    return reply


def query_torch_in_child(*, timeout_s: float = TIMEOUT_S) -> TorchAnswer:
    """Query torch in a new process and wait for the result.

    Raises:
        GuardError: the child returned no result, or an invalid one.
    """
    from batchcal.guard.call import call

    reply = call(query_torch, timeout_s=timeout_s)
    try:
        return TorchAnswer.model_validate(reply)
    except ValidationError as error:
        raise GuardError("the child process that queries torch returned an invalid result", known=str(error)) from error
