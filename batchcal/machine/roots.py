"""Sources of facts about the machine: /proc, /sys and /dev of this machine, or of a prepared directory tree."""

from __future__ import annotations

from pathlib import Path
from typing import Final


class Root:
    """A file system to read. Names are absolute, as on the machine itself: `/proc/meminfo`."""

    def __init__(self, path: Path = Path("/")) -> None:
        self.path = path

    @property
    def real(self) -> bool:
        """True if this is the machine of this process, so that system calls can be used if a file gives no value."""
        return self.path == Path("/")

    def at(self, name: str) -> Path:
        """Path to open for `name`."""
        return self.path / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return the text of a file, stripped. None: it does not exist or is not readable."""
        try:
            return self.at(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """Return the integer in a file. None: the file contains anything else, such as `max`."""
        text = self.read(name)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def exists(self, name: str) -> bool:
        try:
            return self.at(name).exists()
        except OSError:  # a directory of the path that this process may not enter
            return False

    def names(self, directory: str) -> tuple[str, ...]:
        """Entries of a directory, sorted. Empty if it cannot be listed."""
        try:
            return tuple(sorted(entry.name for entry in self.at(directory).iterdir()))
        except OSError:
            return ()


THIS_MACHINE: Final = Root()
"""This machine."""
