"""What each of several workers may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Accelerator, Environment
from batchcal.hpo.blueprint import Assignment, Blueprint, check_same
from batchcal.hpo.config import StudySettings
from batchcal.hpo.search.space import read_space
from batchcal.hpo.workers.assignments import WORKER_BYTES, share_out
from batchcal.measure.options import options
from batchcal.train.options import TrainOptions
from batchcal.workload.spec.reference import TaskReference
from tests.support.calibrations import an_environment


def a_blueprint(low: float = 0.01, **settings: object) -> Blueprint:
    space = read_space({"learning_rate": {"kind": "log_uniform", "low": low, "high": 0.3}}, "test")
    return Blueprint(
        settings=StudySettings.model_validate({"study": "first", **settings}),
        space=dict(space),
        reference=TaskReference(spec="train.py:task", directory="/home/user"),
        options=TrainOptions(epochs=9),
        effective_batch=64,
    )


@pytest.fixture
def machine() -> Environment:
    """4 GiB, one of them used, and a quota of 6 of 8 cores."""
    there = an_environment()
    memory = there.memory.model_copy(
        update={
            "limit": there.memory.limit.model_copy(update={"value": 4 * GIB}),
            "used_bytes": 1 * GIB,
            "available_bytes": 9 * GIB,
        }
    )
    cpu = there.cpu.model_copy(update={"cores": there.cpu.cores.model_copy(update={"value": 6.0})})
    return there.model_copy(update={"memory": memory, "cpu": cpu})


def test_a_single_worker_gets_all_memory_and_cores(machine: Environment) -> None:
    asked = options(4 * GIB)
    (only,) = share_out(a_blueprint(), asked, machine, 1)
    assert only.measure == asked
    assert only.cpus == ()


def test_workers_share_free_memory_and_cores(machine: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    parts = share_out(a_blueprint(), options(4 * GIB), machine, 3)
    assert [part.index for part in parts] == [0, 1, 2]
    (share,) = {part.measure.memory_limit_bytes for part in parts}
    assert share is not None
    assert 0.85 * GIB < share <= 1 * GIB - WORKER_BYTES
    assert [len(part.cpus) for part in parts] == [2, 2, 2]
    assert len({cpu for part in parts for cpu in part.cpus}) == 6, "no core is of two workers"
    assert {part.measure.device for part in parts} == {"cpu"}


def test_a_memory_share_ignores_small_changes_of_used_memory(machine: Environment) -> None:
    busier = machine.memory.model_copy(update={"used_bytes": machine.memory.used_bytes + 10 * MIB})
    first = share_out(a_blueprint(), options(4 * GIB), machine, 2)
    second = share_out(a_blueprint(), options(4 * GIB), machine.model_copy(update={"memory": busier}), 2)
    assert first == second


@pytest.mark.parametrize(
    ("gib", "used", "limit", "workers", "least"), [(1024, 10, None, 64, 14), (512, 20, 16, 2, 7.4), (24, 20, 3, 2, 1.4)]
)
def test_a_memory_share_is_close_to_the_available_memory_per_worker(
    machine: Environment, *, gib: int, used: int, limit: int | None, workers: int, least: float
) -> None:
    memory = machine.memory.model_copy(
        update={
            "limit": machine.memory.limit.model_copy(update={"value": gib * GIB}),
            "used_bytes": used * GIB,
            "available_bytes": (gib - used) * GIB,
        }
    )
    asked = options(gib * GIB, memory_limit_bytes=None if limit is None else limit * GIB)
    (share,) = {
        part.measure.memory_limit_bytes
        for part in share_out(a_blueprint(), asked, machine.model_copy(update={"memory": memory}), workers)
    }
    assert share is not None
    assert least * GIB <= share <= min(gib - used, limit or gib) * GIB / workers


def test_more_workers_than_cores_are_not_pinned_to_cores(machine: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert {part.cpus for part in share_out(a_blueprint(), options(4 * GIB), machine, 7)} == {()}


def test_too_many_workers_are_refused(machine: Environment) -> None:
    with pytest.raises(UsageError, match="20 workers are too many"):
        share_out(a_blueprint(), options(4 * GIB), machine, 20)


def test_workers_cannot_share_an_accelerator(machine: Environment) -> None:
    with pytest.raises(UsageError, match="2 workers need 2 accelerators"):
        share_out(a_blueprint(), options(4 * GIB, device="cuda"), machine, 2)


def test_each_worker_gets_its_own_accelerator(machine: Environment) -> None:
    cards = tuple(
        Accelerator(kind="cuda", index=index, name="H200", total_bytes=GIB, free_bytes=GIB, capability="9.0", mig=False)
        for index in range(2)
    )
    parts = share_out(a_blueprint(), options(4 * GIB), machine.model_copy(update={"accelerators": cards}), 2)
    assert [part.measure.device for part in parts] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("name", ["hyperband", "halving", "median", "none"])
def test_an_assignment_survives_a_json_round_trip(machine: Environment, name: str) -> None:
    (sent,) = share_out(a_blueprint(pruner={"name": name}, trials=7), options(4 * GIB), machine, 1)
    assert Assignment.model_validate_json(sent.model_dump_json()) == sent


def test_trials_and_pruner_do_not_change_the_study_identity() -> None:
    was = a_blueprint(trials=10).identity()
    check_same("first", was, a_blueprint(trials=99, pruner={"name": "none"}).identity())


@pytest.mark.parametrize("other", [a_blueprint(0.02), a_blueprint(metric="mse"), a_blueprint(folds=5)])
def test_space_metric_and_folds_change_the_study_identity(other: Blueprint) -> None:
    with pytest.raises(UsageError, match="study 'first' exists with other settings") as caught:
        check_same("first", a_blueprint().identity(), other.identity())
    assert "was" in caught.value.known


def test_the_default_storage_is_in_the_folder_of_the_task() -> None:
    assert Path(a_blueprint().storage) == Path("/home/user/.batchcal/first.journal")
    assert a_blueprint(storage="postgresql://me:secret@host/db").shown_storage == "postgresql://me:***@host/db"
