"""A study's database, for workers on many machines. A module of its own: SQLAlchemy takes 0.3 s to import."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from batchcal.hpo.again import run_again

HEARTBEAT_S: Final = 10
"""How often a worker tells that its trial runs; one that was silent for three of them is taken to be dead."""
SQLITE_WAIT_S: Final = 60
"""For the lock that another worker holds."""
ATTEMPTS: Final = 6
AGAIN_S: Final = 0.5


class PatientRDBStorage(RDBStorage):
    """A database that may be away for a while: the heartbeat of a trial outlives that."""

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            super().record_heartbeat(trial_id)


def open_database(url: str) -> PatientRDBStorage:
    """The tables are made where there are none.

    Raises:
        Exception: what the driver of `url` says.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _opened(url)
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Who begins at the same time makes the tables of an empty database, too; only one of them can.
            if not isinstance(error, IntegrityError) and "exist" not in str(error):
                raise
            time.sleep(AGAIN_S)
    return _opened(url)


def _opened(url: str) -> PatientRDBStorage:
    waiting = {"connect_args": {"timeout": SQLITE_WAIT_S}} if url.startswith("sqlite") else {}
    return PatientRDBStorage(
        url,
        # A trial may be longer than a database, or what is before it, keeps an idle connection.
        engine_kwargs={"pool_pre_ping": True, **waiting},
        heartbeat_interval=HEARTBEAT_S,
        grace_period=3 * HEARTBEAT_S,
        heartbeat_stale_trial_callback=run_again,
    )
