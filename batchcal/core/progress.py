"""What happens while something long runs, told to an object that the caller gave. The library never prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Field = str | int | float | bool | None
Fields = Mapping[str, Field]


class Progress(Protocol):
    """Listens. Must be quick and must not raise."""

    def event(self, name: str, fields: Fields) -> None:
        """One thing happened, for example `probe_ended` with `batch=512 outcome=fits peak_bytes=...`."""
        ...


class Silent:
    """Nobody listens."""

    def event(self, name: str, fields: Fields) -> None:
        return None


class Recorded:
    """Keeps every event, for tests and for the end-of-run summary."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Field]]] = []

    def event(self, name: str, fields: Fields) -> None:
        self.events.append((name, dict(fields)))


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
