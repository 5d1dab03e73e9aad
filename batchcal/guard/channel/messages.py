"""Messages from a child, or from the supervisor of a command, to the parent: a closed set, and how they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never, get_args

from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.outcome import Phase

_PHASES: Final[tuple[Phase, ...]] = get_args(Phase)


@dataclass(frozen=True)
class PhaseStarted:
    """A phase with its own deadline begins."""

    phase: Phase
    limit_s: float | None
    """Deadline in seconds. None: the parent's default."""


@dataclass(frozen=True)
class ArmRequest:
    """Request to arm the memory fence of the child at its current memory."""


@dataclass(frozen=True)
class MemberArmRequest:
    """Request to arm the fence of one process of a command, which has reported that it is ready."""

    process: int
    line: int
    """Connection of the supervisor to that process, for the reply."""


@dataclass(frozen=True)
class Unfenced:
    """The kernel accepted the data limit but does not enforce it."""


@dataclass(frozen=True)
class ListenerMessage:
    """A message for the caller's listener."""

    message: Message


ChildMessage = PhaseStarted | ArmRequest | MemberArmRequest | Unfenced | ListenerMessage


def written(message: ChildMessage) -> Message:
    """`message` as it is sent."""
    match message:
        case PhaseStarted(phase=phase, limit_s=limit_s):
            return {"phase": phase, "limit_s": limit_s}
        case ArmRequest():
            return {"arm": True}
        case MemberArmRequest(process=process, line=line):
            return {"arm": process, "line": line}
        case Unfenced():
            return {"unfenced": True}
        case ListenerMessage(message=content):
            return {"tell": content}
        case never:
            assert_never(never)


def read_back(message: Message) -> ChildMessage | None:
    """The message in a received line. None: any other line."""
    phase = next((name for name in _PHASES if name == message.get("phase")), None)
    arm, content = message.get("arm"), message.get("tell")
    if phase is not None:
        limit_s = _number(message.get("limit_s"))
        return PhaseStarted(phase, limit_s)
    if arm is True:
        return ArmRequest()
    if isinstance(arm, int) and not isinstance(arm, bool):
        line = message.get("line")
        return MemberArmRequest(arm, line) if isinstance(line, int) and not isinstance(line, bool) else None
    if message.get("unfenced") is True:
        return Unfenced()
    return ListenerMessage(content) if isinstance(content, dict) else None


def _number(value: JSON) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
