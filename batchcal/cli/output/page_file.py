"""Writing of a page to the path that the user gives, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from batchcal.cli.views.pages.page import GENERATOR
from batchcal.core.errors import NotSaved, UsageError
from batchcal.core.files import check_target, write_atomically


def write_page(path: Path, text: str, *, shows: Path | None) -> None:
    """Write a page, completely or not at all.

    Args:
        shows: the file that the page shows. The page must not replace it.

    Raises:
        UsageError: the path is that file, a file that is not a page of batchcal, or a place that cannot be written.
        NotSaved: the disk is full or read-only, or the permission is missing.
    """
    if shows is not None and path.resolve() == shows.resolve():
        raise UsageError(
            f"--html {path} is the file that the page shows", known="the page would replace it", try_="--html report.html"
        )
    check_target(
        path,
        name="--html",
        document="a page of batchcal",
        is_ours=lambda begin: GENERATOR.encode() in begin,
        example="report.html",
    )
    try:
        write_atomically(path, text.encode(), mode=0o644)
    except OSError as error:
        raise NotSaved(
            f"the page could not be written to {path}", known=error.strerror or str(error), try_="--html with another file"
        ) from None
