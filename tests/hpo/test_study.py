"""A study in its storage: begun, joined, read."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from batchcal.core.errors import UsageError
from batchcal.hpo.blueprint import Blueprint
from batchcal.hpo.config import StudySettings
from batchcal.hpo.search.space import read_space
from batchcal.hpo.storage.backend import absolute_storage, open_storage, without_password
from batchcal.hpo.study import make_sampler, open_study, read_study
from batchcal.hpo.study_status import study_status
from batchcal.hpo.trials.reruns import RETRIES, run_again
from batchcal.train.options import TrainOptions
from batchcal.workload.spec.reference import TaskReference


def a_blueprint(folder: Path, *, low: float = 0.01, epochs: int = 9, **settings: object) -> Blueprint:
    space = read_space({"rate": {"kind": "log_uniform", "low": low, "high": 0.3}}, "test")
    return Blueprint(
        settings=StudySettings.model_validate({"study": "first", **settings}),
        space=dict(space),
        reference=TaskReference(spec="train.py:task", directory=str(folder)),
        options=TrainOptions(epochs=epochs),
        effective_batch=64,
    )


def run_one(study: optuna.Study) -> None:
    trial = study.ask()
    study.tell(trial, trial.suggest_float("rate", 0.01, 0.3, log=True))


@pytest.mark.parametrize("storage", [None, "sqlite:///{folder}/study.db"], ids=["journal", "sqlite"])
def test_a_second_worker_joins_the_existing_study(tmp_path: Path, storage: str | None) -> None:
    blueprint = a_blueprint(tmp_path, storage=storage and storage.format(folder=tmp_path))
    first, _ = open_study(blueprint)
    run_one(first)
    second, _ = open_study(blueprint)
    assert len(second.trials) == 1
    seen = study_status(read_study(blueprint.storage))
    assert (seen.name, seen.metric, seen.wanted, seen.resource) == ("first", "loss", 2_000, 9)


def test_settings_of_a_study_cannot_change_after_a_trial(tmp_path: Path) -> None:
    study, _ = open_study(a_blueprint(tmp_path))
    open_study(a_blueprint(tmp_path, metric="mse"))  # nothing ran: what was wrong may be mended
    run_one(study)
    with pytest.raises(UsageError, match="exists with other settings") as caught:
        open_study(a_blueprint(tmp_path))
    assert "metric was" in caught.value.known
    with pytest.raises(UsageError, match="exists with other settings"):
        open_study(a_blueprint(tmp_path, metric="mse", low=0.02))
    with pytest.raises(UsageError, match="exists with other settings"):
        open_study(a_blueprint(tmp_path, metric="mse", epochs=10))
    open_study(a_blueprint(tmp_path, metric="mse", trials=5, pruner={"name": "none"}))


def test_a_study_without_completed_trials_restarts_with_a_changed_space(tmp_path: Path) -> None:
    study, _ = open_study(a_blueprint(tmp_path))
    trial = study.ask()
    trial.suggest_float("rate", 0.01, 0.3, log=True)
    with pytest.raises(UsageError, match="exists with other settings"):
        open_study(a_blueprint(tmp_path, low=0.02))  # it runs
    study.tell(trial, state=TrialState.FAIL)
    same, _ = open_study(a_blueprint(tmp_path))
    assert len(same.trials) == 1, "nothing was wrong with it"
    mended, _ = open_study(a_blueprint(tmp_path, low=0.02))
    assert mended.trials == []


def test_a_study_not_created_by_batchcal_is_rejected(tmp_path: Path) -> None:
    blueprint = a_blueprint(tmp_path)
    run_one(optuna.create_study(study_name="first", storage=open_storage(blueprint.storage)))
    with pytest.raises(UsageError, match="batchcal did not create it"):
        open_study(blueprint)


def test_a_failed_study_not_created_by_batchcal_is_not_modified(tmp_path: Path) -> None:
    blueprint = a_blueprint(tmp_path)
    study = optuna.create_study(study_name="first", storage=open_storage(blueprint.storage))
    study.tell(study.ask(), state=TrialState.FAIL)
    with pytest.raises(UsageError, match="batchcal did not create it"):
        open_study(blueprint)
    assert len(study.get_trials()) == 1


@pytest.mark.parametrize("storage", ["{folder}/none.journal", "sqlite:///{folder}/none.db"])
def test_reading_a_missing_study_creates_no_file(tmp_path: Path, storage: str) -> None:
    with pytest.raises(UsageError, match="there is no study"):
        read_study(storage.format(folder=tmp_path), "first")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("study.journal", "/home/user/study.journal"),
        ("/data/study.journal", "/data/study.journal"),
        ("sqlite:///study.db", "sqlite:////home/user/study.db"),
        ("sqlite:////data/study.db", "sqlite:////data/study.db"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
    ],
)
def test_a_relative_storage_path_becomes_absolute(where: str, found: str) -> None:
    assert absolute_storage(where, Path("/home/user")) == found


def test_errors_do_not_show_the_database_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    assert without_password("journal.file") == "journal.file"


def test_samples_depend_only_on_the_seed_and_the_trial_number() -> None:
    def sampled(seed: int, number: int) -> float:
        study = optuna.create_study(sampler=make_sampler(seed, number))
        return study.ask().suggest_float("x", 0, 1)

    assert sampled(0, 3) == sampled(0, 3)
    assert len({sampled(seed, number) for seed in (0, 1) for number in (0, 1, 2)}) == 6


def test_a_trial_that_kills_every_worker_fails_and_the_study_completes(tmp_path: Path) -> None:
    study, _ = open_study(a_blueprint(tmp_path, trials=1))
    for _ in range(RETRIES + 1):
        trial = study.ask()
        trial.suggest_float("rate", 0.01, 0.3, log=True)
        study.tell(trial, state=TrialState.FAIL)
        run_again(study, study.get_trials()[trial.number])
    seen = study_status(study)
    assert [one.state for one in seen.trials] == [*["lost"] * RETRIES, "failed"]
    assert seen.trials[-1].facts.kind == "worker-died"
    assert seen.done == seen.wanted == 1
