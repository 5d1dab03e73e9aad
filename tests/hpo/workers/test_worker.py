"""Studies that run: real calibrations, real children, a journal on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from batchcal.core.errors import Interrupted, NothingFits
from batchcal.core.progress import Named, Recorded
from batchcal.core.units import GIB
from batchcal.detect.detect import detect
from batchcal.hpo.config import StudySettings
from batchcal.hpo.search.pruner import make_pruner
from batchcal.hpo.search.space import read_space
from batchcal.hpo.shapes import ShapeBook
from batchcal.hpo.storage.backend import open_storage
from batchcal.hpo.storage.presence import identity
from batchcal.hpo.trials.reruns import AGAIN, WORKER, retry_lost, run_again
from batchcal.hpo.trials.trial import TrialRunner
from batchcal.hpo.workers.worker import Worker
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.options import options
from batchcal.train.options import TrainOptions
from batchcal.values.study_events import TrialReached
from batchcal.workload.spec.reference import TaskReference
from tests.support.children import REPOSITORY

pytestmark = pytest.mark.child

EPOCHS = 9
RATE = {"kind": "log_uniform", "low": 0.01, "high": 0.3}
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrations that the studies of this file share, as studies of one task do."""
    return tmp_path_factory.mktemp("shapes")


def a_worker(folder: Path, shapes: Path, space: Mapping[str, object], **settings: object) -> Worker:
    environment = detect()
    study_settings = StudySettings.model_validate({"study": "small", "trials": 6, "metric": "mse", **settings})
    pruner, _ = make_pruner(study_settings.pruner, resource=EPOCHS, trials=study_settings.trials)
    study = optuna.create_study(
        study_name=study_settings.study,
        storage=open_storage(folder / "study.journal"),
        sampler=optuna.samplers.TPESampler(seed=1),
        pruner=pruner,
        load_if_exists=True,
    )
    wish = options(
        environment.memory.limit.value,
        time_limit_s=8,
        effective_batch=100,
        workers=0,
        max_batch=100,
        allocator="default",
        memory_limit_bytes=GIB,
    )
    launchers = Launchers(os.environ, note=lambda text: None, spawn_only=False)
    reference = TaskReference(spec="tests.hpo.tasks:task", directory=str(REPOSITORY))
    return Worker(
        study=study,
        settings=study_settings,
        space=read_space(space, "test"),
        book=ShapeBook(reference, wish, environment, shapes, most_trained=100, launchers=launchers),
        runner=TrialRunner(launchers),
        options=TrainOptions(epochs=EPOCHS, patience=4, min_delta=0.001),
        effective_batch=50,
        progress=Recorded(),
    )


def run(worker: Worker) -> list[optuna.trial.FrozenTrial]:
    try:
        worker.work()
    finally:
        assert worker.book.launchers is not None
        worker.book.launchers.close()
    return worker.study.get_trials()


def known(trial: optuna.trial.FrozenTrial) -> dict[str, object]:
    facts: dict[str, object] = trial.user_attrs["batchcal"]
    return facts


def test_every_trial_trains_with_its_sampled_effective_batch(tmp_path: Path, shapes: Path) -> None:
    space = {"learning_rate": RATE, "batch_size": {"kind": "categorical", "choices": [16, 60, 100]}}
    trials = run(a_worker(tmp_path, shapes, space))
    assert len(trials) == 6
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert done
    for trial in done:
        batch, facts = trial.params["batch_size"], known(trial)
        steps = facts["steps"]
        assert isinstance(steps, dict)
        rest = 160 % batch
        assert set(steps) == {str(batch), *([str(rest)] if rest else [])}, "160 samples an epoch, nothing dropped"
        assert trial.value is not None
        assert trial.value < 5.0
        predicted, peak = facts["predicted_peak_bytes"], facts["peak_bytes"]
        assert isinstance(predicted, int)
        assert isinstance(peak, int)
        assert 0.9 < peak / predicted < 1.1
    measured = [trial for trial in trials if trial.user_attrs["batchcal"].get("shape_measured")]
    assert len(measured) <= 1, "one shape, one calibration"


@pytest.mark.slow
def test_a_trial_that_cannot_fit_is_pruned_with_a_memory_constraint(tmp_path: Path, shapes: Path) -> None:
    space = {"width": {"kind": "categorical", "choices": [8, 30_000_000_000]}, "learning_rate": RATE}
    trials = run(a_worker(tmp_path, shapes, space))
    large = [trial for trial in trials if trial.params["width"] > 8]
    small = [trial for trial in trials if trial.params["width"] == 8]
    assert large
    assert small
    for trial in large:
        assert trial.state is TrialState.PRUNED
        assert trial.constraints["memory"] > 0
        assert known(trial)["kind"] == "too-large"
    assert all(trial.constraints["memory"] <= 0 for trial in small)
    assert any(trial.state is TrialState.COMPLETE for trial in small)


def test_a_trial_above_the_parameter_budget_is_pruned_before_measuring(tmp_path: Path, shapes: Path) -> None:
    worker = a_worker(tmp_path, shapes, {"width": {"kind": "int", "low": 1000, "high": 1001}}, trials=2, budget=100)
    worker.book.budget_parameters = 100
    with pytest.raises(NothingFits, match="none of 2 trials fits"):
        run(worker)
    trials = worker.study.get_trials()
    assert {trial.state for trial in trials} == {TrialState.PRUNED}
    assert "the study allows 100" in str(known(trials[0])["why"])


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "kind"), [("kill", "killed-from-outside"), ("hang", "timed-out"), ("leak", "out-of-memory")])
def test_a_failed_trial_is_classified_and_the_study_continues(tmp_path: Path, shapes: Path, fault: str, kind: str) -> None:
    space = {"fault": {"kind": "categorical", "choices": ["none", fault], "shape": False}, "learning_rate": RATE}
    worker = a_worker(tmp_path, shapes, space, trial_limit_s=4.0, trials=5)
    trials = run(worker)
    broken = [trial for trial in trials if trial.params["fault"] == fault]
    whole = [trial for trial in trials if trial.params["fault"] == "none"]
    assert broken
    assert whole
    assert {trial.state for trial in broken} == {TrialState.FAIL}
    assert {known(trial)["kind"] for trial in broken} == {kind}
    assert TrialState.FAIL not in {trial.state for trial in whole}


def test_each_fold_is_reported_and_the_trial_value_is_the_mean(tmp_path: Path, shapes: Path) -> None:
    space = {"learning_rate": RATE}
    trials = run(a_worker(tmp_path, shapes, space, folds=4, trials=2, pruner={"name": "none"}))
    for trial in trials:
        values = known(trial)["fold_values"]
        assert isinstance(values, list)
        assert len(values) == 4
        assert trial.value == pytest.approx(sum(values) / 4)
        assert [trial.intermediate_values[EPOCHS * fold] for fold in (1, 2, 3, 4)][-1] == pytest.approx(trial.value)


@pytest.mark.slow
def test_an_interrupted_trial_runs_again_when_the_study_continues(tmp_path: Path, shapes: Path) -> None:
    class Interrupts(Recorded):
        def event(self, event: Named, /) -> None:
            super().event(event)
            if isinstance(event, TrialReached) and event.epochs == 2:
                raise Interrupted(15)

    space = {"learning_rate": RATE}
    worker = a_worker(tmp_path, shapes, space, trials=2)
    worker.progress = Interrupts()
    with pytest.raises(Interrupted):
        run(worker)
    first = worker.study.get_trials()
    assert [trial.state for trial in first] == [TrialState.FAIL, TrialState.WAITING]
    trials = run(a_worker(tmp_path, shapes, space, trials=2))
    assert trials[0].state is TrialState.FAIL
    assert trials[1].params == trials[0].params
    assert len([trial for trial in trials if trial.state.is_finished()]) == 3, "two trials, one of them twice"


@pytest.mark.slow
def test_a_trial_continues_with_a_new_zygote_when_its_zygote_is_killed(tmp_path: Path, shapes: Path) -> None:
    class Kills(Recorded):
        def event(self, event: Named, /) -> None:
            super().event(event)
            if isinstance(event, TrialReached) and event.epochs == 2 and not killed:
                pid = launchers.running["default"].overhead_pid
                assert pid is not None
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    killed: list[int] = []
    worker = a_worker(tmp_path, shapes, {"learning_rate": RATE}, trials=2, pruner={"name": "none"})
    assert worker.book.launchers is not None
    launchers, worker.progress = worker.book.launchers, Kills()
    trials = run(worker)
    assert killed
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.COMPLETE]


@pytest.mark.slow
def test_a_worker_wrongly_marked_as_dead_drops_its_trial_and_continues(tmp_path: Path, shapes: Path) -> None:
    class TakenForDead(Recorded):
        def event(self, event: Named, /) -> None:
            super().event(event)
            if isinstance(event, TrialReached) and (event.trial, event.epochs) == (0, 2):
                other = optuna.load_study(study_name="small", storage=open_storage(tmp_path / "study.journal"))
                other.tell(0, state=TrialState.FAIL)
                run_again(other, other.get_trials()[0])

    worker = a_worker(tmp_path, shapes, {"learning_rate": RATE}, trials=2, pruner={"name": "none"})
    worker.progress = TakenForDead()
    first, *others = run(worker)
    assert first.state is TrialState.FAIL
    assert [trial.state for trial in others] == [TrialState.COMPLETE, TrialState.COMPLETE], "its second run, and the other trial"
    assert [trial.user_attrs.get(AGAIN) for trial in others].count(0) == 1


def test_an_infeasible_batch_size_does_not_affect_other_trials_of_a_shape(tmp_path: Path, shapes: Path) -> None:
    space = {"learning_rate": RATE, "batch_size": {"kind": "categorical", "choices": [16, 9_000_000]}}
    trials = run(a_worker(tmp_path, shapes, space, trials=5))
    large = [trial for trial in trials if trial.params["batch_size"] > 16]
    assert large
    assert {known(trial)["state"] for trial in large} == {"infeasible"}
    assert {trial.state for trial in trials if trial.params["batch_size"] == 16} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(large) < 5


DIES = """
import os, optuna, sys
from batchcal.hpo.storage.backend import open_storage
from batchcal.hpo.trials.reruns import WORKER
from batchcal.hpo.storage.presence import identity
study = optuna.load_study(study_name="lost", storage=open_storage(sys.argv[1]))
trial = study.ask()
trial.suggest_float("x", 0, 1)
trial.set_user_attr(WORKER, identity())
os._exit(9)
"""


def test_a_trial_of_a_dead_worker_is_requeued_and_a_running_trial_is_not(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="lost", storage=open_storage(path))
    subprocess.run([sys.executable, "-c", DIES, str(path)], check=False, cwd=REPOSITORY, env={**os.environ})
    mine = study.ask()
    mine.suggest_float("x", 0, 1)
    mine.set_user_attr(WORKER, identity())
    assert retry_lost(study) == (0,)
    assert retry_lost(study) == ()
    lost, running, again = study.get_trials()
    assert (lost.state, running.state, again.state) == (TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)
    assert study.ask().suggest_float("x", 0, 1) == lost.params["x"]
