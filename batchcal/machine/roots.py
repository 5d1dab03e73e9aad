"""Where facts about the machine are read: /proc, /sys and /dev of this machine, or of a tree that somebody laid out."""

from __future__ import annotations

from pathlib import Path
from typing import Final


class Root:
    """A file system to read. Names are absolute, as the machine itself would say them: `/proc/meminfo`."""

    def __init__(self, path: Path = Path("/")) -> None:
        self.path = path

    @property
    def real(self) -> bool:
        """Whether this is the machine that we run on, so that system calls may be asked where a file does not answer."""
        return self.path == Path("/")

    def at(self, name: str) -> Path:
        """Where `name` is to be opened."""
        return self.path / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """The text of a file, stripped; None where it is not there or may not be read."""
        try:
            return self.at(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """The one whole number in a file; None where it holds anything else, such as `max`."""
        text = self.read(name)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def exists(self, name: str) -> bool:
        try:
            return self.at(name).exists()
        except OSError:  # a directory on the way that we may not enter
            return False

    def names(self, directory: str) -> tuple[str, ...]:
        """The entries of a directory, sorted; none where it cannot be listed."""
        try:
            return tuple(sorted(entry.name for entry in self.at(directory).iterdir()))
        except OSError:
            return ()


HERE: Final = Root()
"""This machine."""
