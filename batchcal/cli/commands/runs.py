"""`batchcal show` for runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from batchcal.cli.output import stdout
from batchcal.cli.output.document import run
from batchcal.core.clock import SystemClock
from batchcal.core.errors import UsageError
from batchcal.train.report.read import is_run, read_run

if TYPE_CHECKING:
    from batchcal.cli.output.messages import Messages


def names_a_run(file: str | None) -> bool:
    """True if the first line or the name of `file` is that of a run's log, or if it is a folder: only runs have one."""
    if file is None:
        return False

    path = Path(file)
    return path.is_dir() or path.suffix == ".jsonl" or is_run(path)


def refuse(file: str, kind: Literal["run", "study"], *, check: bool, why: bool, require_signature: bool, other: bool) -> None:
    """Refuse options that only calibrations support.

    Raises:
        UsageError: such an option was given for a run or a study.
    """
    plural = "runs" if kind == "run" else "studies"
    refusals = {
        f"batchcal show compares calibrations only, not {plural}": other,
        f"--check is for calibrations; the validity of a {kind} is not checked": check,
        f"--why is for calibrations; a {kind} always shows the reason of each change": why,
        f"--require-signature is for calibrations; a {kind} is not signed": require_signature,
    }
    for text, applies in refusals.items():
        if applies:
            raise UsageError(text, try_=f"batchcal show {file}")


def show_run(file: str, *, html: str | None, as_json: bool, messages: Messages) -> None:
    """Show a run on the terminal, as JSON or as a page.

    Raises:
        UsageError: `file` is not a run, or cannot be read.
        NotSaved: the page could not be written.
    """
    from batchcal.cli.views.run.words import ShownRun

    view = ShownRun(run=read_run(Path(file)), at=SystemClock().now())
    if html is not None:
        from batchcal.cli.output.page_file import write_page
        from batchcal.cli.views.run.page import page

        write_page(Path(html), page(view), shows=view.run.path)
        messages.print(f"written: {html}")
    if as_json:
        stdout.emit(run(view.run))
    elif html is None:
        from batchcal.cli.views.run.view import show

        stdout.render(show(view))
