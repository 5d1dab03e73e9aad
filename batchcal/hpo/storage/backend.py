"""Storage of a study: a journal file on one machine, a database for many."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from optuna.storages import BaseStorage

from batchcal.calibration.store import make_folder
from batchcal.core.errors import BatchcalError, UsageError
from batchcal.hpo.storage.journal import check_journal, open_journal

SQLITE: Final = "sqlite:///"


def default_storage(folder: Path, study: str) -> Path:
    """Return the journal of a study without a configured storage."""
    return folder / f"{study}.journal"


def absolute_storage(storage: str, directory: Path) -> str:
    """Return a form of `storage` that is valid in any folder. A relative path is below `directory`."""
    if storage.startswith(SQLITE) and storage != SQLITE:
        return f"{SQLITE}{directory / storage.removeprefix(SQLITE)}"
    return storage if "://" in storage else str(directory / storage)


def open_storage(storage: str | Path, *, make: bool = True, config: str = "CONFIG") -> BaseStorage:
    """Open a journal file, or a database by its URL (`sqlite:///study.db`, `postgresql+psycopg://...`).

    Args:
        make: create the storage if it does not exist.
        config: the config file of the study, for the error.

    Raises:
        UsageError: it cannot be reached, is not the storage of a study, or does not exist and `make` is False.
    """
    text = str(storage)
    if text.startswith("sqlite:") and not text.removeprefix(SQLITE).strip("/ ").removeprefix("sqlite:").strip("/"):
        raise UsageError(
            f"the storage {text} does not name a file",
            known="a database in memory belongs to one process and is lost when it ends",
            try_='storage = "sqlite:///study.db"',
        )
    try:
        if "://" in text:
            if not make and text.startswith(SQLITE) and not Path(text.removeprefix(SQLITE)).is_file():
                raise _no_study(without_password(text), config)
            from batchcal.hpo.storage.database import open_database

            return open_database(text)
        path = Path(text)
        if not make and not path.is_file():
            raise _no_study(text, config)
        if make:
            make_folder(path.absolute())
        check_journal(path)
        return open_journal(text)
    except BatchcalError:  # includes signals
        raise
    except Exception as error:  # of any driver that the URL names
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"the storage {without_password(text)} cannot be used",
            known=lines[0] if lines else type(error).__name__,
            try_='storage = "study.journal", or the URL of a running database',
        ) from error


def _no_study(storage: str, config: str) -> UsageError:
    return UsageError(
        f"there is no study at {storage}",
        known="a study is created by its first run",
        try_=f"batchcal hpo run {config}    starts the study",
    )


def without_password(url: str) -> str:
    """Return the storage without its password, for display."""
    if "://" not in url:
        return url
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(invalid URL)"
