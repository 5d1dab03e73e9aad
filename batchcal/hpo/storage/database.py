"""Database of a study, for workers on many machines. This is a separate module because SQLAlchemy takes 0.3 s to import."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from batchcal.hpo.trials.reruns import run_again

HEARTBEAT_S: Final = 10
"""Seconds between heartbeats of a worker whose trial runs. After three of them without a heartbeat, the worker counts as dead."""
SQLITE_WAIT_S: Final = 60
"""Seconds to wait for the lock that another worker holds."""
ATTEMPTS: Final = 6
AGAIN_S: Final = 0.5


class PatientRDBStorage(RDBStorage):
    """A database that may be unavailable for a while: the heartbeat of a trial survives this."""

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            super().record_heartbeat(trial_id)


def open_database(url: str) -> PatientRDBStorage:
    """Open the database at `url`, and create its tables if there are none.

    Raises:
        Exception: an error of the driver of `url`.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _connect(url)
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Workers that begin at the same time all create the tables of an empty database. Only one of them succeeds.
            if not isinstance(error, IntegrityError) and "exist" not in str(error):
                raise
            time.sleep(AGAIN_S)
    return _connect(url)


def _connect(url: str) -> PatientRDBStorage:
    waiting = {"connect_args": {"timeout": SQLITE_WAIT_S}} if url.startswith("sqlite") else {}
    return PatientRDBStorage(
        url,
        # A trial may take longer than a database, or a proxy in front of it, keeps an idle connection.
        engine_kwargs={"pool_pre_ping": True, **waiting},
        heartbeat_interval=HEARTBEAT_S,
        grace_period=3 * HEARTBEAT_S,
        heartbeat_stale_trial_callback=run_again,
    )
