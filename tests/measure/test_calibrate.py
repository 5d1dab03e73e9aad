"""A calibration from beginning to end, on machines that are numbers: what is answered, told, written and left."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.calibration.keys import find_trust
from batchcal.calibration.schema import TIME_TO_LIVE, Calibration
from batchcal.calibration.store import Loaded, load
from batchcal.core.clock import ManualClock
from batchcal.core.errors import Interrupted, NothingFits, NotSaved, Partial, UsageError, UserCodeError
from batchcal.core.lock import Lock
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits, Outcome, OutOfMemory
from batchcal.measure.options import options
from batchcal.measure.probe import ProbeReport, ProbeRequest
from tests.support.probes import FAILED, KILLED, Desk, ScriptedProbe, an_accelerator, best_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def saved(desk: Desk, path: Path | None = None) -> Calibration:
    found = load(path or desk.path, trust=find_trust(desk.environ))
    assert isinstance(found, Loaded)
    return found.calibration


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


def test_when_it_is_complete_nothing_but_the_file_stays(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe())
    assert not desk.journal.exists()
    assert {name for name in desk.files() if name.startswith(".batchcal")} <= {
        ".batchcal",
        ".batchcal/.gitignore",
        ".batchcal/calibration.json",
        ".batchcal/calibration.json.lock",
    }


def test_a_simple_run_tells_its_events_in_this_order(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe(train_samples=100, eval_samples=60))
    probe = ["phase", "probe_started", "probe_ended", "best"]
    assert desk.names() == ["calibrate_started", "phase", *probe, *probe, "calibrate_ended"]
    (began,) = desk.events("calibrate_started")
    assert (began["task"], began["device"], began["limit_bytes"]) == ("task.py:task", "cpu", GIB)
    assert [fields["phase"] for fields in desk.events("phase")] == ["profile", "verify", "scale"]
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
    assert desk.calibrate(ScriptedProbe(), options(GIB, time_limit_s=600, max_probes=50, effective_batch=999)).fresh


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


def test_a_time_limit_without_an_answer_is_partial_and_what_there_is_is_saved(desk: Desk) -> None:
    probe = ScriptedProbe(clock=desk.clock, examination_takes_s=100)
    result = desk.calibrate(probe)
    assert isinstance(result.stopped, Partial)
    assert result.stopped.exit_code == 6
    assert "scale" in result.stopped.known
    assert result.calibration.status == "partial"
    assert result.calibration.finding() is None
    assert saved(desk) == result.calibration
    assert desk.journal.exists()


def test_runs_that_tell_nothing_are_no_proof_that_nothing_fits(desk: Desk) -> None:
    result = desk.calibrate(ScriptedProbe(lambda request, time: KILLED))
    assert isinstance(result.stopped, Partial)
    assert result.calibration.status == "partial"
    assert "told nothing about memory" in " ".join(result.calibration.undone)


def test_a_partial_result_never_replaces_a_calibration(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe())
    good = desk.path.read_bytes()
    result = desk.calibrate(ScriptedProbe(clock=desk.clock, examination_takes_s=100), force=True)
    assert isinstance(result.stopped, Partial)
    assert desk.path.read_bytes() == good


def test_a_partial_calibration_is_not_fresh(desk: Desk) -> None:
    desk.calibrate(ScriptedProbe(clock=desk.clock, examination_takes_s=100))
    result = desk.calibrate(ScriptedProbe())
    assert not result.fresh
    assert result.calibration.status == "complete"
    assert saved(desk) == result.calibration
    assert not desk.journal.exists()


def test_a_time_limit_after_an_answer_returns_it_and_says_what_is_undone(desk: Desk) -> None:
    probe = ScriptedProbe(clock=desk.clock, takes_s=70)
    result = desk.calibrate(probe)
    finding = result.calibration.finding()
    assert finding is not None
    assert result.stopped is None
    assert result.calibration.status == "unsettled"
    assert finding.train.limited_by == "time-limit"
    assert finding.train.batch == probe.sizes()[0]
    assert finding.train.undone
    assert result.calibration.undone
    assert saved(desk) == result.calibration


def test_max_probes_is_kept(desk: Desk) -> None:
    probe = ScriptedProbe()
    result = desk.calibrate(probe, options(GIB, max_probes=1))
    assert len(probe.asked) == 1
    assert result.calibration.status == "unsettled"
    finding = result.calibration.finding()
    assert finding is not None
    assert finding.train.limited_by == "max-probes"
    assert finding.eval is None


def interrupting(after: int) -> ScriptedProbe:
    """Ctrl-C in the probe that comes after so many."""
    asked: list[int] = []

    def script(request: ProbeRequest, time: int) -> Outcome | None:
        asked.append(request.batch)
        if len(asked) > after:
            raise Interrupted(2)
        return None

    return ScriptedProbe(script)


def test_an_interruption_keeps_what_was_verified(desk: Desk) -> None:
    probe = interrupting(2)
    result = desk.calibrate(probe)
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.status == "unsettled"
    assert "stopped by signal 2" in result.calibration.undone
    assert saved(desk) == result.calibration
    assert desk.journal.exists()
    assert probe.closed == 1


def test_an_interruption_before_anything_was_verified_keeps_the_measurements(desk: Desk) -> None:
    result = desk.calibrate(interrupting(0))
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.status == "partial"
    assert saved(desk).status == "partial"


def test_an_interruption_within_a_search_returns_the_best_so_far(desk: Desk) -> None:
    """The first probe fitted: what was verified is an answer, though the search was not over."""
    result = desk.calibrate(interrupting(1))
    assert isinstance(result.stopped, Interrupted)
    finding = result.calibration.finding()
    assert finding is not None
    assert finding.train.batch == best_of(result.calibration.measurements)


def broken_off(desk: Desk, after: int) -> list[int]:
    """A calibration that dies without a word after so many probes; the sizes that it ran."""

    class PowerCut(BaseException):
        pass

    ran: list[int] = []

    def script(request: ProbeRequest, time: int) -> Outcome | None:
        if len(ran) == after:
            raise PowerCut
        ran.append(request.batch)
        return None

    with pytest.raises(PowerCut):
        desk.calibrate(ScriptedProbe(script))
    return ran


@pytest.mark.parametrize("after", [1, 2, 3])
def test_what_was_measured_before_a_power_cut_is_not_measured_again(desk: Desk, after: int) -> None:
    whole = ScriptedProbe()
    straight = desk.calibrate(whole, output=desk.folder / "other" / "straight.json").calibration
    ran = broken_off(desk, after)
    probe = ScriptedProbe()
    resumed = desk.calibrate(probe).calibration
    assert len(ran) == after
    assert [request.batch for request in probe.asked] == [request.batch for request in whole.asked][after:]
    assert len(desk.events("probe_kept")) >= after
    assert resumed.finding() == straight.finding()
    assert [one.batch for one in resumed.measurements] == [one.batch for one in straight.measurements]
    assert not desk.journal.exists()


def test_a_second_power_cut_loses_nothing_either(desk: Desk) -> None:
    first = broken_off(desk, 1)
    second = broken_off(desk, 1)
    resumed = desk.calibrate(ScriptedProbe()).calibration
    assert [one.batch for one in resumed.measurements][:2] == first + second
    assert [one.sequence for one in resumed.measurements] == list(range(1, len(resumed.measurements) + 1))


def test_a_resumption_holds_although_others_use_a_little_more_now(desk: Desk) -> None:
    ran = broken_off(desk, 2)
    memory = desk.environment.memory
    less = memory.model_copy(update={"available_bytes": 850 * MIB + int(0.15 * GIB)})
    desk.environment = desk.environment.model_copy(update={"memory": less})
    probe = ScriptedProbe()
    resumed = desk.calibrate(probe).calibration
    budget, finding = resumed.budget(), resumed.finding()
    assert budget is not None
    assert finding is not None
    assert budget.budget_bytes == 850 * MIB
    assert finding.train.peak_bytes <= budget.budget_bytes
    assert ran[0] not in probe.sizes()


def test_force_begins_from_the_beginning(desk: Desk) -> None:
    broken_off(desk, 2)
    probe = ScriptedProbe()
    desk.calibrate(probe, force=True)
    assert len(probe.sizes()) == 2
    assert desk.events("probe_kept") == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written any more, as root neither."""

    def refuse(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchcal.calibration.store.write_atomically", refuse)
    monkeypatch.setattr("batchcal.calibration.journal.write_atomically", refuse)


@pytest.mark.usefixtures("full_disk")
def test_what_cannot_be_saved_is_returned_with_the_reason(desk: Desk) -> None:
    result = desk.calibrate(ScriptedProbe())
    assert result.path is None
    assert isinstance(result.not_saved, NotSaved)
    assert result.not_saved.exit_code == 7
    assert "disk is full" in result.not_saved.known
    assert result.calibration.status == "complete"
    assert any("no journal" in notice for notice in result.notices)


def test_a_journal_that_fails_later_costs_the_journal_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchcal.calibration.journal.write_all", refuse)
    result = desk.calibrate(ScriptedProbe())
    assert result.calibration.status == "complete"
    assert any("the journal could not be written: the disk is full" in notice for notice in result.notices)


def test_a_calibration_that_another_made_while_we_waited_is_ours(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas on one volume: the second waits for the first and takes what it made."""
    made = desk.calibrate(ScriptedProbe()).calibration
    data = desk.path.read_bytes()
    desk.path.unlink()
    acquire = Lock.acquire

    def finished_by_another(self: Lock, **asked: object) -> object:
        desk.path.write_bytes(data)
        wait_s, done = asked["wait_s"], asked["done"]
        assert isinstance(wait_s, float)
        assert callable(done)
        return acquire(self, wait_s=wait_s, done=done)

    monkeypatch.setattr(Lock, "acquire", finished_by_another)
    probe = ScriptedProbe()
    result = desk.calibrate(probe)
    assert result.fresh
    assert result.calibration == made
    assert probe.asked == []


def test_without_a_lock_it_measures_and_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(self: object, **asked: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    result = desk.calibrate(ScriptedProbe())
    assert result.calibration.status == "complete"
    assert any("no lock" in notice for notice in result.notices)


def test_a_device_that_is_not_here_is_a_usage_error_that_lists_what_is(desk: Desk) -> None:
    desk.environment = desk.environment.model_copy(update={"accelerators": (an_accelerator(),)})
    with pytest.raises(UsageError) as raised:
        desk.calibrate(ScriptedProbe(), options(GIB, device="cuda:3"))
    assert raised.value.known == "there is: cpu, cuda:0"


def test_an_allocator_that_is_not_here_is_refused_before_anything_is_written(desk: Desk) -> None:
    with pytest.raises(UsageError):
        desk.calibrate(ScriptedProbe(), options(GIB, allocator="wonderful"))
    assert ".batchcal" not in desk.files()


def test_a_task_that_is_not_here_is_refused(desk: Desk) -> None:
    desk.reference = desk.reference.model_copy(update={"spec": "other.py:task"})
    with pytest.raises(UsageError):
        desk.calibrate(ScriptedProbe())


class TwoDevices(ScriptedProbe):
    """An accelerator that is `speed` times as fast as the CPU."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def measure(self, request: ProbeRequest) -> ProbeReport:
        report = super().measure(request)
        if request.device == "cpu" or not isinstance(report.outcome, Fits):
            return report
        faster = report.outcome.model_copy(update={"samples_per_s": report.outcome.samples_per_s * self._speed})
        return report.model_copy(update={"outcome": faster})


@pytest.mark.parametrize(("speed", "chosen"), [(3.0, "cuda:0"), (0.2, "cpu")])
def test_auto_measures_both_devices_and_says_which_is_faster(desk: Desk, speed: float, chosen: str) -> None:
    desk.environment = desk.environment.model_copy(update={"accelerators": (an_accelerator(),)})
    calibration = desk.calibrate(TwoDevices(speed)).calibration
    assert {found.device for found in calibration.findings} == {"cpu", "cuda:0"}
    assert calibration.chosen_device == chosen
    finding = calibration.finding()
    assert finding is not None
    assert finding.device == chosen
    (note,) = [note for note in calibration.notes if "is the fastest device" in note]
    assert note.startswith(chosen)
    assert note.count("samples/s") == 2


@pytest.mark.parametrize(
    ("asked", "measured"), [("cpu", ["cpu"]), ("cuda", ["cuda:0"]), ("cuda:1", ["cuda:1"]), ("auto", ["cpu", "cuda:0"])]
)
def test_a_device_that_is_asked_for_is_the_only_one(desk: Desk, asked: str, measured: list[str]) -> None:
    cards = (an_accelerator(), an_accelerator(index=1, free_bytes=8 * GIB))
    desk.environment = desk.environment.model_copy(update={"accelerators": cards})
    calibration = desk.calibrate(ScriptedProbe(), options(GIB, device=asked)).calibration
    assert [budget.device for budget in calibration.budgets] == measured
    assert {one.device for one in calibration.measurements} == set(measured)


def test_an_accelerator_s_answer_is_limited_by_its_own_memory(desk: Desk) -> None:
    desk.environment = desk.environment.model_copy(update={"accelerators": (an_accelerator(),)})
    finding = desk.calibrate(ScriptedProbe(), options(GIB, device="cuda")).calibration.finding()
    assert finding is not None
    assert finding.train.limited_by == "accelerator-memory"


def test_a_device_on_which_nothing_fits_leaves_the_other(desk: Desk) -> None:
    full = an_accelerator(free_bytes=16 * MIB)
    desk.environment = desk.environment.model_copy(update={"accelerators": (full,)})
    calibration = desk.calibrate(ScriptedProbe()).calibration
    assert calibration.status == "complete"
    assert calibration.chosen_device == "cpu"
    assert any(note.startswith("cuda:0 under default: nothing fits") for note in calibration.notes)


def test_an_allocator_other_than_the_default_is_measured_beside_it(desk: Desk) -> None:
    """A script that is not re-executed runs under the default."""
    probe = ScriptedProbe()
    calibration = desk.calibrate(probe, options(GIB, allocator="retain")).calibration
    assert probe.examined == [("cpu", "retain"), ("cpu", "default")]
    assert [found.allocator for found in calibration.findings] == ["retain", "default"]
    assert calibration.finding() == calibration.findings[0]
    assert calibration.finding(allocator="default") == calibration.findings[1]


def test_where_only_the_default_allocator_fits_its_answer_is_kept(desk: Desk) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="fence") if request.allocator == "retain" else None)
    result = desk.calibrate(probe, options(GIB, allocator="retain"))
    found = result.calibration.finding(allocator="default")
    assert found is not None
    assert any("under retain: nothing fits" in note for note in result.calibration.notes)
    assert saved(desk).findings == (found,)


def test_the_default_place_is_the_users_folder_where_the_project_cannot_be_written(desk: Desk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        result = desk.calibrate(ScriptedProbe())
    assert result.path is not None
    assert not result.path.is_relative_to(desk.folder)
    assert result.path.exists()
