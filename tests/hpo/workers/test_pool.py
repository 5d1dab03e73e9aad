"""Who leads workers: with members that do nothing but what a line of shell says."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import pytest

from batchcal.core.errors import GuardError, NothingFits
from batchcal.core.progress import Recorded
from batchcal.core.units import GIB
from batchcal.hpo.blueprint import Assignment
from batchcal.hpo.workers import pool
from batchcal.hpo.workers.pool import MOST_DEATHS, WorkerPool
from batchcal.measure.options import options
from tests.hpo.workers.test_assignments import a_blueprint

pytestmark = pytest.mark.child

NOTICE = """echo '{"event": "notice", "values": {"text": "be it known"}}'"""
UNFIT = """echo '{"error": {"name": "NothingFits", "what": "none fits", "known": "so large", "try": "smaller"}}'"""


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Assignment, ...]:
    """Two, in `tmp_path`."""
    monkeypatch.setattr(pool, "LONGEST_WAIT_S", 0.0)
    blueprint = a_blueprint()
    here = blueprint.reference.model_copy(update={"directory": str(tmp_path)})
    blueprint = blueprint.model_copy(update={"reference": here})
    return tuple(Assignment(blueprint=blueprint, measure=options(GIB), index=index) for index in range(2))


def led(
    workers: tuple[Assignment, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> tuple[WorkerPool, Recorded]:
    """`script` is what a worker does once it has read its assignment, which is in $assignment."""
    member = tmp_path / "member"
    member.write_text(f"#!/bin/sh\nread -r assignment\n{script}\n", encoding="utf-8")
    member.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(member))
    heard = Recorded()
    return WorkerPool(workers, logs=tmp_path / "logs", progress=heard), heard


def test_a_dying_worker_is_replaced_a_limited_number_of_times(
    workers: tuple[Assignment, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""{NOTICE}\ncase "$assignment" in *'"index":0'*) echo gone wrong >&2; exit 1;; esac\nread -r order"""
    leader, heard = led(workers, tmp_path, monkeypatch, script)
    with pytest.raises(GuardError, match="worker 0 died 6 times without finishing a trial; last: exited with code 1") as caught:
        leader.run()
    assert "gone wrong" in caught.value.known
    names = [name for name, _ in heard.events]
    assert names.count("worker_died") == MOST_DEATHS
    assert names.count("notice") == 1
    told = next(fields for name, fields in heard.events if name == "notice")
    assert told["text"] == "be it known"
    assert told["worker"] in {0, 1}, "one of several"
    assert psutil.Process().children() == [], "the other one has stopped"


def test_a_fatal_error_of_a_worker_stops_all_workers_and_is_raised(
    workers: tuple[Assignment, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""case "$assignment" in *'"index":0'*) {UNFIT}; exit 1;; esac\nread -r order; exit 0"""
    leader, heard = led(workers, tmp_path, monkeypatch, script)
    with pytest.raises(NothingFits, match="none fits") as caught:
        leader.run()
    assert (caught.value.known, caught.value.try_) == ("so large", "smaller")
    assert "worker_died" not in [name for name, _ in heard.events]


def test_a_worker_that_ignores_sigterm_is_killed(
    workers: tuple[Assignment, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "GRACE_S", 0.5)
    leader, _ = led(workers, tmp_path, monkeypatch, "trap '' TERM\nwhile :; do sleep 0.1; done")
    threading.Timer(0.5, leader.stop).start()
    leader.run()
    assert psutil.Process().children() == []
