"""Writing a page where the user wants it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from batchcal.core.errors import NotSaved, UsageError
from batchcal.core.files import write_atomically


def write_page(path: Path, text: str, *, shows: Path | None) -> None:
    """Whole or not at all.

    Args:
        shows: the file that the page is about, which it may not replace.

    Raises:
        UsageError: that file, or a folder.
        NotSaved: disk full, read-only, no right.
    """
    if path.is_dir() or (shows is not None and path.resolve() == shows.resolve()):
        what = "a folder" if path.is_dir() else "the file itself that it is to show"
        raise UsageError(f"--html {path} is {what}", try_="--html report.html")
    try:
        write_atomically(path, text.encode(), mode=0o644)
    except OSError as error:
        raise NotSaved(
            f"the page could not be written to {path}", known=error.strerror or str(error), try_="--html with another file"
        ) from None
