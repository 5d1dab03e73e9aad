"""Where a study is kept: a journal file on one machine, a database for many."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from batchcal.calibration.store import make_folder
from batchcal.core.errors import UsageError
from batchcal.hpo.again import run_again

HEARTBEAT_S: Final = 10
"""How often a worker tells a database that its trial runs; one that was silent for three of them is taken to be dead."""
SQLITE_WAIT_S: Final = 60
"""For the lock that another worker holds."""


def default_storage(folder: Path, study: str) -> Path:
    """The journal of a study that names no storage."""
    return folder / f"{study}.journal"


def open_storage(where: str | Path, *, make: bool = True) -> BaseStorage:
    """A journal file, or a database by its URL (`sqlite:///study.db`, `postgresql+psycopg://...`).

    Args:
        make: begin one where none is.

    Raises:
        UsageError: it cannot be reached, or is no study's storage, or is not there and is not to be made.
    """
    text = str(where)
    try:
        if "://" in text:
            waiting = {"connect_args": {"timeout": SQLITE_WAIT_S}} if text.startswith("sqlite") else {}
            return RDBStorage(
                text,
                # A trial may be longer than a database, or what is before it, keeps an idle connection.
                engine_kwargs={"pool_pre_ping": True, **waiting},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=3 * HEARTBEAT_S,
                heartbeat_stale_trial_callback=run_again,
            )
        path = Path(text)
        if not make and not path.is_file():
            raise UsageError(
                f"there is no study at {text}", known="it is begun by batchcal hpo run", try_="batchcal hpo run CONFIG"
            )
        if make:
            make_folder(path.absolute())
        return JournalStorage(JournalFileBackend(text))
    except UsageError:
        raise
    except Exception as error:  # of whatever driver the URL names
        known = str(error).strip().splitlines()
        raise UsageError(
            f"the storage {without_password(text)} cannot be used",
            known=known[0] if known else type(error).__name__,
            try_='storage = "study.journal", or the URL of a database that runs',
        ) from error


def without_password(url: str) -> str:
    """A storage as it may be shown."""
    if "://" not in url:
        return url
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "given"
