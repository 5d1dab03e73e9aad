"""Progress of long operations, reported as events to a listener of the caller. The library never prints.

Events are values of closed sets: `values.calibration_events`, `values.training_events`, `values.study_events`. A view handles all
events of its set, so that mypy reports a missing one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

Field = str | int | float | bool | None
Fields = Mapping[str, Field]


class Named(Protocol):
    """The part of an event that logs and `key=value` lines use."""

    @property
    def event_name(self) -> str:
        """`probe_ended`."""
        ...

    def fields(self) -> Fields:
        """Values by name, in the order of writing. None: unknown."""
        ...


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    event_name: ClassVar[str]
    """Name in logs."""

    def fields(self) -> Fields:
        return dict(vars(self))


@dataclass(frozen=True)
class Note(Event):
    """A remark on a calibration."""

    event_name = "note"
    text: str


@dataclass(frozen=True)
class Notice(Event):
    """A remark on a training or a study."""

    event_name = "notice"
    text: str


@dataclass(frozen=True)
class Output(Event):
    """Text that the user's code printed while its task was loaded and examined; shown with -v."""

    event_name = "output"
    text: str


_E_contra = TypeVar("_E_contra", contravariant=True)


class Progress(Protocol[_E_contra]):
    """Listener. It must be quick and must not raise."""

    def event(self, event: _E_contra, /) -> None:
        """Receive one event."""
        ...


class Silent:
    """Discard every event."""

    def event(self, event: Named, /) -> None:
        return None


class Recorded:
    """Keep every event, for tests."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Field]]] = []

    def event(self, event: Named, /) -> None:
        self.events.append((event.event_name, dict(event.fields())))


def key_values(name: str, fields: Fields) -> str:
    """One machine-readable line: `probe_ended batch=512 outcome=fits`. Text with blanks is quoted; None is left out."""
    parts = [name]
    for key, value in fields.items():
        if value is None:
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, float):
            text = f"{value:.6g}"
        else:
            text = str(value)
        if not text or any(character in text for character in ' "=\n\t'):
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'
        parts.append(f"{key}={text}")
    return " ".join(parts)
