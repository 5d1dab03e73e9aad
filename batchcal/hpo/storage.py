"""Where a study is kept: a journal file on one machine, a database for many."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend

from batchcal.calibration.store import make_folder
from batchcal.core.errors import UsageError

HEARTBEAT_S: Final = 10
"""How often a worker tells a database that its trial runs; one that was silent for three of them is taken to be dead."""
RETRIES: Final = 2
"""Of a trial whose worker died."""


def default_storage(folder: Path, study: str) -> Path:
    """The journal of a study that names no storage."""
    return folder / ".batchcal" / f"{study}.journal"


def open_storage(where: str | Path) -> BaseStorage:
    """A journal file, or a database by its URL (`sqlite:///study.db`, `postgresql+psycopg://...`).

    Raises:
        UsageError: it cannot be reached, or is no study's storage.
    """
    text = str(where)
    try:
        if "://" in text:
            return RDBStorage(
                text,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=3 * HEARTBEAT_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
        path = Path(text)
        make_folder(path.parent)
        return JournalStorage(JournalFileBackend(text))
    except Exception as error:  # of whatever driver the URL names
        known = str(error).strip().splitlines()
        raise UsageError(
            f"the storage {_without_password(text)} cannot be used",
            known=known[0] if known else type(error).__name__,
            try_='storage = "study.journal", or the URL of a database that runs',
        ) from error


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True) if "://" in url else url
    except ArgumentError:
        return "given"
