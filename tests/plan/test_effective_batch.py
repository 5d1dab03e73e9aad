"""The effective batch is the user's: who sets it, in which order, and the error where it is not set."""

from pathlib import Path

import pytest

from batchcal.calibration.schema import Calibration
from batchcal.core.errors import UsageError
from batchcal.plan.effective_batch import EXAMPLE, effective_batch_of, fastest_micro_batch, require, unset_remark
from batchcal.plan.make import is_rehearsed, make_plan, own_plan
from tests.support.calibrations import TRAIN_CAPACITY, a_calibration, a_finding, step_time
from tests.support.races import a_raced_calibration


def of_a_task(samples: int | None, **overrides: object) -> Calibration:
    """A calibration whose task sets `samples`."""
    calibration = a_calibration(**overrides)
    assert calibration.facts is not None
    return calibration.model_copy(update={"facts": calibration.facts.model_copy(update={"effective_batch": samples})})


def test_the_command_overrides_the_task_and_the_task_overrides_the_calibration() -> None:
    calibration = of_a_task(96, effective_batch=128)
    assert make_plan(calibration, effective_batch=64).effective_batch == 64
    assert make_plan(calibration).effective_batch == 96
    assert make_plan(calibration).why["effective_batch"] == "Task.effective_batch"
    assert own_plan(calibration).effective_batch == 128, "its views show what it was measured for"
    assert make_plan(of_a_task(None, effective_batch=128)).effective_batch == 128


def test_the_command_or_the_task_must_set_the_effective_batch() -> None:
    with pytest.raises(UsageError) as unset:
        require(of_a_task(None), None)
    assert f"--effective-batch {TRAIN_CAPACITY}" in unset.value.try_, "the fastest micro-batch is suggested"
    with pytest.raises(UsageError) as made_for:
        require(of_a_task(None, effective_batch=100), None)
    assert "--effective-batch 100" in made_for.value.try_
    require(of_a_task(96), None)
    require(of_a_task(None), 64)


def test_a_missing_effective_batch_without_findings_suggests_an_example() -> None:
    with pytest.raises(UsageError) as error:
        require(a_calibration(status="partial", findings=()), None)
    for way in (f"--effective-batch {EXAMPLE}", f"BATCHCAL_EFFECTIVE_BATCH={EXAMPLE}", "below [plan] in", "batchcal.Task"):
        assert way in error.value.try_


def test_the_default_plan_is_one_micro_batch_of_the_fastest_size() -> None:
    calibration = a_raced_calibration(effective_batch=None)
    plan = make_plan(calibration)
    assert (plan.micro_batches, plan.effective_batch) == ((128,), 128)
    assert make_plan(calibration, objective="memory").effective_batch == TRAIN_CAPACITY
    assert make_plan(calibration, world_size=2).effective_batch == 256
    assert unset_remark(calibration)
    assert not unset_remark(a_raced_calibration())
    assert any("the effective batch is not set" in notice for notice in plan.notices)
    assert not any("effective batch is not set" in notice for notice in make_plan(calibration, effective_batch=128).notices)


def test_the_speed_of_a_single_micro_batch_includes_the_optimizer_update() -> None:
    raced = a_raced_calibration(effective_batch=None)
    finding = raced.finding()
    assert finding is not None
    assert fastest_micro_batch(raced, finding) == 128
    times = tuple(time.model_copy(update={"update_s": 1.0}) for time in raced.speeds[0].times)
    heavy = raced.model_copy(update={"speeds": (raced.speeds[0].model_copy(update={"times": times}),)})
    assert fastest_micro_batch(heavy, finding) == 256, "an update of a second is spread over more samples"
    beyond = raced.speeds[0].model_copy(update={"times": (step_time(10 * TRAIN_CAPACITY, 0.001),)})
    assert fastest_micro_batch(raced.model_copy(update={"speeds": (beyond,)}), a_finding()) == TRAIN_CAPACITY


def test_a_calibration_is_rehearsed_for_the_tasks_own_effective_batch() -> None:
    calibration = a_raced_calibration(effective_batch=None)
    assert calibration.facts is not None
    assert is_rehearsed(calibration, calibration.options)
    facts = calibration.facts.model_copy(update={"effective_batch": 96})
    assert not is_rehearsed(calibration.model_copy(update={"facts": facts}), calibration.options)
    assert effective_batch_of(calibration, None) is None


def test_load_plan_reads_the_environment_variable_and_pyproject_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchcal.values.settings import PlanSettings, Settings
    from batchcal.workload.spec.config import project_source

    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.batchcal.plan]\neffective_batch = 32\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    found = project_source(inner)
    assert found is not None
    settings = Settings(environ={}, files=(found[0],))
    assert (
        settings.of(PlanSettings.effective_batch).origin == f"{tmp_path / 'pyproject.toml'} [tool.batchcal.plan] effective_batch"
    )
    assert settings.plan.effective_batch == 32
    assert Settings(environ={"BATCHCAL_EFFECTIVE_BATCH": "48"}, files=(found[0],)).plan.effective_batch == 48
