"""A calibration from beginning to end, on machines that are numbers: what is answered, told, written and left."""

from __future__ import annotations

import os
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.calibration.schema import TIME_TO_LIVE
from batchcal.core.clock import ManualClock
from batchcal.core.errors import NothingFits, UsageError, UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.measure.options import options
from batchcal.plan.make import make_plan
from tests.support.probes import FAILED, Harness, ScriptedProbe, saved


def test_a_calibration_saves_a_measured_result(harness: Harness) -> None:
    probe = ScriptedProbe()
    result = harness.calibrate(probe)
    calibration = result.calibration
    assert (result.path, result.fresh, result.stopped, result.not_saved) == (harness.path, False, None, None)
    assert calibration.status == "complete"
    finding = calibration.finding()
    assert finding is not None
    run = next(one for one in calibration.measurements if one.sequence == finding.train.measured_by)
    assert (run.batch, run.outcome.kind, run.mode) == (finding.train.batch, "fits", "train")
    assert finding.train.batch in probe.sizes()
    assert finding.train.limited_by == "memory"
    budget = calibration.budget()
    assert budget is not None
    assert 0.95 * budget.budget_bytes < finding.train.peak_bytes <= budget.budget_bytes
    assert calibration.expires_at == calibration.created_at + TIME_TO_LIVE
    assert saved(harness) == calibration
    assert probe.closed == 1


def test_the_file_sums_up_runs_and_time(harness: Harness) -> None:
    calibration = harness.calibrate(ScriptedProbe(clock=harness.clock, takes_s=0.5)).calibration

    counted = Counter((one.device, one.allocator, one.mode, one.batch) for one in calibration.measurements)
    assert {(one.device, one.allocator, one.mode, one.batch): one.count for one in calibration.setups} == counted
    slices = {one.part: one.wall_s for one in calibration.time_slices}
    assert {"examination", "train-capacity", "eval-capacity", "rehearsal"} <= set(slices)
    assert len(slices) == len(calibration.time_slices)
    assert 0 < sum(slices.values()) <= calibration.wall_s + 0.01
    assert calibration.unanswered == ()
    assert saved(harness) == calibration


def test_objectives_whose_races_did_not_run_are_unanswered(harness: Harness) -> None:
    largest = harness.calibrate(ScriptedProbe(), options(GIB, objective="memory")).calibration
    nothing = harness.calibrate(ScriptedProbe(clock=harness.clock, examination_takes_s=100), force=True).calibration

    assert largest.unanswered == ("throughput",)
    assert nothing.unanswered == ("throughput", "memory")


def test_only_the_calibration_file_remains_after_a_calibration(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe())
    assert not harness.journal.exists()
    assert {name for name in harness.files() if name.startswith(".batchcal")} <= {
        ".batchcal",
        ".batchcal/.gitignore",
        f".batchcal/{harness.path.name}",
        f".batchcal/{harness.path.name}.lock",
    }


def test_a_simple_run_reports_its_events_as_expected(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe(train_samples=100, eval_samples=60))
    probe = ["phase", "probe_started", "probe_ended", "best"]
    races = {"lap_ended", "finalist_ended", "rehearsed", "attributed"}
    assert races < set(harness.names())
    phases = [fields["phase"] for fields in harness.events("phase")]
    assert phases[:2] == ["profile", "race"]
    assert phases[-4:] == ["sizes", "finals", "rehearsal", "attribution"]
    harness.progress.events.clear()
    harness.calibrate(
        ScriptedProbe(train_samples=100, eval_samples=60), options(GIB, allocator="default", objective="memory"), force=True
    )
    last = ["phase", "rehearsed", "calibrate_ended"]
    assert harness.names() == ["calibrate_started", "phase", *probe, *probe, *last]
    (began,) = harness.events("calibrate_started")
    assert (began["task"], began["device"], began["limit_bytes"]) == ("task.py:task", "cpu", GIB)
    assert [fields["phase"] for fields in harness.events("phase")] == [
        "profile",
        "verify",
        "scale",
        "rehearsal",
    ]
    assert [fields["batch"] for fields in harness.events("best")] == [100, 60]
    (ended,) = harness.events("calibrate_ended")
    assert (ended["status"], ended["train_batch"], ended["eval_batch"]) == ("complete", 100, 60)
    assert (ended["limited_by"], ended["probes"]) == ("dataset", 2)


def test_a_fresh_calibration_is_returned_and_nothing_is_measured(harness: Harness) -> None:
    first = harness.calibrate(ScriptedProbe())
    probe = ScriptedProbe()
    second = harness.calibrate(probe)
    assert second.fresh
    assert second.calibration == first.calibration
    assert (probe.requests, probe.examined) == ([], [])


def test_force_measures_again_despite_a_fresh_calibration(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe())
    probe = ScriptedProbe(bytes_per_sample=3 * MIB)
    result = harness.calibrate(probe, force=True)
    assert not result.fresh
    assert probe.requests
    assert saved(harness) == result.calibration


@pytest.mark.parametrize("change", ["expired", "other-options", "other-task", "other-memory", "torn"])
def test_a_stale_calibration_is_measured_again(harness: Harness, change: str) -> None:
    harness.calibrate(ScriptedProbe())
    asked = options(GIB)
    match change:
        case "expired":
            harness.clock = ManualClock(harness.clock.now() + TIME_TO_LIVE + timedelta(seconds=1))
        case "other-options":
            asked = options(GIB, margin=0.3)
        case "other-task":
            (harness.folder / "task.py").write_text("def task(): ...\n", encoding="utf-8")
        case "other-memory":
            memory = harness.environment.memory
            limit = memory.limit.model_copy(update={"value": 2 * GIB})
            harness.environment = harness.environment.model_copy(update={"memory": memory.model_copy(update={"limit": limit})})
        case _:
            harness.path.write_bytes(harness.path.read_bytes()[:-40])
    result = harness.calibrate(ScriptedProbe(), asked)
    assert not result.fresh
    assert saved(harness) == result.calibration


def test_a_longer_time_limit_does_not_make_a_calibration_stale(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe())
    assert harness.calibrate(ScriptedProbe(), options(GIB, time_limit_s=600, max_probes=50, objective="memory")).fresh


def test_an_additional_rehearsal_does_not_change_time_slices(harness: Harness) -> None:
    first = harness.calibrate(ScriptedProbe(clock=harness.clock, takes_s=0.5)).calibration
    further = harness.calibrate(ScriptedProbe(clock=harness.clock, takes_s=0.5), options(GIB, effective_batch=777)).calibration

    assert len(further.rehearsals) > len(first.rehearsals)
    assert further.time_slices == first.time_slices


def test_another_effective_batch_only_rehearses_its_plan(harness: Harness) -> None:
    before = harness.calibrate(ScriptedProbe()).calibration
    probe = ScriptedProbe()
    result = harness.calibrate(probe, options(GIB, effective_batch=999))
    assert not result.fresh
    assert probe.requests == []
    calibration = saved(harness)
    assert (calibration.findings, calibration.created_at) == (before.findings, before.created_at)
    assert len(calibration.rehearsals) == len(before.rehearsals) + 1
    plan = make_plan(calibration)
    assert (plan.status, plan.effective_batch) == ("verified", 999)
    assert harness.calibrate(ScriptedProbe(), options(GIB, effective_batch=999)).fresh


def test_output_sets_the_path_of_the_file(harness: Harness, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "down" / "mine.json"
    result = harness.calibrate(ScriptedProbe(), output=elsewhere)
    assert result.path == elsewhere
    assert saved(harness, elsewhere) == result.calibration
    assert not harness.path.exists()


def test_the_environment_variable_sets_the_path_of_the_file(harness: Harness, tmp_path: Path) -> None:
    harness.environ = {"BATCHCAL_CALIBRATION": str(tmp_path / "named.json")}
    assert harness.calibrate(ScriptedProbe()).path == tmp_path / "named.json"


def test_a_dry_run_shows_the_search_and_writes_nothing_at_all(harness: Harness, own_home: Path) -> None:
    before, home = harness.files(), {path for path in own_home.rglob("*") if path.is_file()}
    result = harness.calibrate(dry_run=True)
    assert result.path is None
    assert harness.names()[-1] == "calibrate_ended"
    assert result.calibration.finding() is not None
    assert all(one.isolation.launcher == "fake" for one in result.calibration.measurements)
    assert any("dry run" in note for note in result.calibration.notes)
    assert harness.files() == before
    assert {path for path in own_home.rglob("*") if path.is_file()} == home


def test_a_dry_run_ignores_an_existing_calibration(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe())
    there = harness.path.read_bytes()
    assert not harness.calibrate(dry_run=True).fresh
    assert harness.path.read_bytes() == there


def test_a_task_that_fails_raises_user_code_error_and_writes_no_calibration(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: FAILED)
    with pytest.raises(UserCodeError) as raised:
        harness.calibrate(probe)
    assert "Traceback" in raised.value.known
    assert not harness.path.exists()
    assert probe.closed == 1


def test_nothing_fits_reports_the_demand_the_limit_and_a_suggestion(harness: Harness) -> None:
    probe = ScriptedProbe(base_bytes=2 * GIB)
    with pytest.raises(NothingFits) as raised:
        harness.calibrate(probe)
    assert "batch size 1 needs about 2.00 GiB" in raised.value.what
    assert "limit 1.00 GiB" in raised.value.known
    assert "margin" in raised.value.known
    assert raised.value.try_
    assert probe.closed == 1
    assert not harness.path.exists()


def test_a_task_file_that_does_not_exist_is_a_usage_error(harness: Harness) -> None:
    harness.reference = harness.reference.model_copy(update={"spec": "other.py:task"})
    with pytest.raises(UsageError):
        harness.calibrate(ScriptedProbe())


def test_the_default_path_is_the_user_folder_if_the_project_is_read_only(harness: Harness) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        result = harness.calibrate(ScriptedProbe())
    assert result.path is not None
    assert not result.path.is_relative_to(harness.folder)
    assert result.path.exists()
