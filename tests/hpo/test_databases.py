"""Studies in a database: a real PostgreSQL server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hpo.test_command import Study, home, members
from tests.support import postgres

pytestmark = [pytest.mark.child, pytest.mark.slow]
__all__ = ["home"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    why = postgres.why_not()
    if why:
        pytest.skip(why)
    with postgres.server() as url:
        yield url


def test_trials_of_killed_workers_run_again_on_postgresql(home: Path, database: str) -> None:
    study = Study(home, "postgres", trials=5, epochs=15, arguments="samples = 1000", more=f'storage = "{database}"')
    command = study.started("--workers", "2")
    for least in (1, 2):
        study.wait_until("complete", "pruned", least=least)
        time.sleep(0.3)
        for worker in members(command)[:1]:
            worker.kill()
    out, err = command.communicate(timeout=180)
    assert command.returncode == 0, err
    assert "5 of 5" in out
    trials = study.trials()
    lost = [trial["number"] for trial in trials if trial["state"] == "lost"]
    assert sum(trial["again"] is not None for trial in trials) == len(lost), "a run more for each that died"
    assert sum(trial["state"] in ("complete", "pruned") for trial in trials) == 5
