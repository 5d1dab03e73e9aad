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
from tests.support.probes import FAILED, Desk, ScriptedProbe, saved


def test_a_calibration_answers_what_was_run_and_writes_it(desk: Desk) -> None:
    probe = ScriptedProbe()
    result = desk.calibrate(probe)
    calibration = result.calibration
    assert (result.path, result.fresh, result.stopped, result.not_saved) == (desk.path, False, None, None)
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
    assert saved(desk) == calibration
    assert probe.closed == 1


def test_the_file_sums_up_runs_and_time(desk: Desk) -> None:
    calibration = desk.calibrate(ScriptedProbe(clock=desk.clock, takes_s=0.5)).calibration

    counted = Counter((one.device, one.allocator, one.mode, one.batch) for one in calibration.measurements)
    assert {(one.device, one.allocator, one.mode, one.batch): one.count for one in calibration.setups} == counted
    slices = {one.part: one.wall_s for one in calibration.time_slices}
    assert {"examination", "train-capacity", "eval-capacity", "rehearsal"} <= set(slices)
    assert len(slices) == len(calibration.time_slices)
    assert 0 < sum(slices.values()) <= calibration.wall_s + 0.01
    assert calibration.unanswered == ()
    assert saved(desk) == calibration


def test_objectives_whose_races_did_not_run_are_unanswered(desk: Desk) -> None:
    largest = desk.calibrate(ScriptedProbe(), options(GIB, objective="memory")).calibration
    nothing = desk.calibrate(ScriptedProbe(clock=desk.clock, examination_takes_s=100), force=True).calibration

    assert largest.unanswered == ("throughput",)
    assert nothing.unanswered == ("throughput", "memory")


def test_when_it_is_complete_nothing_but_the_file_stays(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe())
    assert not desk.journal.exists()
    assert {name for name in desk.files() if name.startswith(".batchcal")} <= {
        ".batchcal",
        ".batchcal/.gitignore",
        f".batchcal/{desk.path.name}",
        f".batchcal/{desk.path.name}.lock",
    }


def test_a_simple_run_tells_its_events_in_this_order(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe(train_samples=100, eval_samples=60))
    probe = ["phase", "probe_started", "probe_ended", "best"]
    races = {"lap_ended", "finalist_ended", "rehearsed", "attributed"}
    assert races < set(desk.names())
    phases = [fields["phase"] for fields in desk.events("phase")]
    assert phases[:2] == ["profile", "race"]
    assert phases[-4:] == ["sizes", "finals", "rehearsal", "attribution"]
    desk.progress.events.clear()
    desk.calibrate(
        ScriptedProbe(train_samples=100, eval_samples=60), options(GIB, allocator="default", objective="memory"), force=True
    )
    last = ["phase", "rehearsed", "calibrate_ended"]
    assert desk.names() == ["calibrate_started", "phase", *probe, *probe, *last]
    (began,) = desk.events("calibrate_started")
    assert (began["task"], began["device"], began["limit_bytes"]) == ("task.py:task", "cpu", GIB)
    assert [fields["phase"] for fields in desk.events("phase")] == [
        "profile",
        "verify",
        "scale",
        "rehearsal",
    ]
    assert [fields["batch"] for fields in desk.events("best")] == [100, 60]
    (ended,) = desk.events("calibrate_ended")
    assert (ended["status"], ended["train_batch"], ended["eval_batch"]) == ("complete", 100, 60)
    assert (ended["limited_by"], ended["probes"]) == ("dataset", 2)


def test_a_fresh_calibration_is_returned_and_nothing_is_measured(desk: Desk) -> None:
    first = desk.calibrate(ScriptedProbe())
    probe = ScriptedProbe()
    second = desk.calibrate(probe)
    assert second.fresh
    assert second.calibration == first.calibration
    assert (probe.asked, probe.examined) == ([], [])


def test_force_measures_although_a_fresh_one_is_there(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe())
    probe = ScriptedProbe(bytes_per_sample=3 * MIB)
    result = desk.calibrate(probe, force=True)
    assert not result.fresh
    assert probe.asked
    assert saved(desk) == result.calibration


@pytest.mark.parametrize("change", ["expired", "other-options", "other-task", "other-memory", "torn"])
def test_a_stale_calibration_is_measured_anew(desk: Desk, change: str) -> None:
    desk.calibrate(ScriptedProbe())
    asked = options(GIB)
    match change:
        case "expired":
            desk.clock = ManualClock(desk.clock.now() + TIME_TO_LIVE + timedelta(seconds=1))
        case "other-options":
            asked = options(GIB, margin=0.3)
        case "other-task":
            (desk.folder / "task.py").write_text("def task(): ...\n", encoding="utf-8")
        case "other-memory":
            memory = desk.environment.memory
            limit = memory.limit.model_copy(update={"value": 2 * GIB})
            desk.environment = desk.environment.model_copy(update={"memory": memory.model_copy(update={"limit": limit})})
        case _:
            desk.path.write_bytes(desk.path.read_bytes()[:-40])
    result = desk.calibrate(ScriptedProbe(), asked)
    assert not result.fresh
    assert saved(desk) == result.calibration


def test_a_longer_time_limit_does_not_make_an_answer_stale(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe())
    assert desk.calibrate(ScriptedProbe(), options(GIB, time_limit_s=600, max_probes=50, objective="memory")).fresh


def test_a_further_rehearsal_changes_no_time_slice(desk: Desk) -> None:
    first = desk.calibrate(ScriptedProbe(clock=desk.clock, takes_s=0.5)).calibration
    further = desk.calibrate(ScriptedProbe(clock=desk.clock, takes_s=0.5), options(GIB, effective_batch=777)).calibration

    assert len(further.rehearsals) > len(first.rehearsals)
    assert further.time_slices == first.time_slices


def test_for_another_effective_batch_only_its_plan_is_run(desk: Desk) -> None:
    before = desk.calibrate(ScriptedProbe()).calibration
    probe = ScriptedProbe()
    result = desk.calibrate(probe, options(GIB, effective_batch=999))
    assert not result.fresh
    assert probe.asked == []
    calibration = saved(desk)
    assert (calibration.findings, calibration.created_at) == (before.findings, before.created_at)
    assert len(calibration.rehearsals) == len(before.rehearsals) + 1
    plan = make_plan(calibration)
    assert (plan.status, plan.effective_batch) == ("verified", 999)
    assert desk.calibrate(ScriptedProbe(), options(GIB, effective_batch=999)).fresh


def test_output_moves_the_file(desk: Desk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "down" / "mine.json"
    result = desk.calibrate(ScriptedProbe(), output=elsewhere)
    assert result.path == elsewhere
    assert saved(desk, elsewhere) == result.calibration
    assert not desk.path.exists()


def test_the_variable_moves_the_file(desk: Desk, tmp_path: Path) -> None:
    desk.environ = {"BATCHCAL_CALIBRATION": str(tmp_path / "named.json")}
    assert desk.calibrate(ScriptedProbe()).path == tmp_path / "named.json"


def test_a_dry_run_shows_the_search_and_writes_nothing_at_all(desk: Desk, own_home: Path) -> None:
    before, home = desk.files(), {path for path in own_home.rglob("*") if path.is_file()}
    result = desk.calibrate(dry_run=True)
    assert result.path is None
    assert desk.names()[-1] == "calibrate_ended"
    assert result.calibration.finding() is not None
    assert all(one.isolation.launcher == "fake" for one in result.calibration.measurements)
    assert any("dry run" in note for note in result.calibration.notes)
    assert desk.files() == before
    assert {path for path in own_home.rglob("*") if path.is_file()} == home


def test_a_dry_run_neither_reads_nor_touches_what_is_there(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe())
    there = desk.path.read_bytes()
    assert not desk.calibrate(dry_run=True).fresh
    assert desk.path.read_bytes() == there


def test_a_task_that_fails_is_exit_5_with_its_traceback_and_writes_no_calibration(desk: Desk) -> None:
    probe = ScriptedProbe(lambda request, time: FAILED)
    with pytest.raises(UserCodeError) as raised:
        desk.calibrate(probe)
    assert "Traceback" in raised.value.known
    assert not desk.path.exists()
    assert probe.closed == 1


def test_nothing_fits_says_what_is_needed_what_there_is_and_what_to_try(desk: Desk) -> None:
    probe = ScriptedProbe(base_bytes=2 * GIB)
    with pytest.raises(NothingFits) as raised:
        desk.calibrate(probe)
    assert "batch size 1 needs about 2.00 GiB" in raised.value.what
    assert "limit 1.00 GiB" in raised.value.known
    assert "margin" in raised.value.known
    assert raised.value.try_
    assert probe.closed == 1
    assert not desk.path.exists()


def test_a_task_that_is_not_here_is_refused(desk: Desk) -> None:
    desk.reference = desk.reference.model_copy(update={"spec": "other.py:task"})
    with pytest.raises(UsageError):
        desk.calibrate(ScriptedProbe())


def test_the_default_place_is_the_users_folder_where_the_project_cannot_be_written(desk: Desk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        result = desk.calibrate(ScriptedProbe())
    assert result.path is not None
    assert not result.path.is_relative_to(desk.folder)
    assert result.path.exists()
