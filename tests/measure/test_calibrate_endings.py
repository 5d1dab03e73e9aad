"""A calibration that ends early, at a limit or by a signal: what it answers and keeps, and what it says is undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.calibration.records.undone import Undone
from batchcal.calibration.store import NAME
from batchcal.core.errors import Interrupted, NoCalibration, Partial
from batchcal.core.units import GIB
from batchcal.guard.outcome import Outcome
from batchcal.measure.children.probe import InterruptedAfterTraining, Observation, ProbeRequest, RehearsalRequest
from batchcal.measure.options import options
from batchcal.measure.result import Need
from tests.support.probes import KILLED, Harness, ScriptedProbe, best_of, saved


def test_a_time_limit_without_a_result_saves_a_partial_calibration(harness: Harness) -> None:
    probe = ScriptedProbe(clock=harness.clock, examination_takes_s=100)
    result = harness.calibrate(probe)
    assert isinstance(result.stopped, Partial)
    assert result.stopped.exit_code == 6
    assert "was next" in result.stopped.known
    assert result.calibration.status == "partial"
    assert result.calibration.finding() is None
    assert saved(harness) == result.calibration
    assert harness.journal.exists()


def test_a_slow_examination_still_leaves_time_for_a_verified_result(harness: Harness) -> None:
    """The share of the search is over by then, the time limit is not."""
    probe = ScriptedProbe(clock=harness.clock, examination_takes_s=50)
    result = harness.calibrate(probe)
    finding = result.calibration.finding()
    assert result.stopped is None
    assert finding is not None
    assert finding.train.limited_by == "time-limit"
    assert result.calibration.status == "unsettled"


def test_inconclusive_runs_do_not_raise_nothing_fits(harness: Harness) -> None:
    result = harness.calibrate(ScriptedProbe(lambda request, time: KILLED))
    assert isinstance(result.stopped, Partial)
    assert result.calibration.status == "partial"
    assert "inconclusive" in " ".join(left.text for left in result.calibration.undone)


def test_a_partial_result_never_replaces_a_calibration(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe())
    good = harness.path.read_bytes()
    result = harness.calibrate(ScriptedProbe(clock=harness.clock, examination_takes_s=100), force=True)
    assert isinstance(result.stopped, Partial)
    assert harness.path.read_bytes() == good


def test_a_partial_calibration_is_not_fresh(harness: Harness) -> None:
    harness.calibrate(ScriptedProbe(clock=harness.clock, examination_takes_s=100))
    result = harness.calibrate(ScriptedProbe())
    assert not result.fresh
    assert result.calibration.status == "complete"
    assert saved(harness) == result.calibration
    assert not harness.journal.exists()


def test_a_time_limit_after_a_result_returns_it_and_lists_unfinished_parts(harness: Harness) -> None:
    probe = ScriptedProbe(clock=harness.clock, takes_s=70)
    result = harness.calibrate(probe)
    finding = result.calibration.finding()
    assert finding is not None
    assert result.stopped is None
    assert result.calibration.status == "unsettled"
    assert finding.train.limited_by == "time-limit"
    assert finding.train.batch == probe.sizes()[0]
    assert finding.train.undone
    assert {left.part for left in result.calibration.undone} >= {"search"}
    assert saved(harness) == result.calibration


def test_an_unfinished_search_continues_with_a_longer_time_limit(harness: Harness) -> None:
    first = ScriptedProbe(clock=harness.clock, takes_s=70)
    harness.calibrate(first)
    assert harness.calibrate(ScriptedProbe()).fresh, "as much time as before: the same answer"
    second = ScriptedProbe()
    result = harness.calibrate(second, options(GIB, time_limit_s=600))
    assert not result.fresh
    assert result.calibration.status == "complete"
    assert second.sizes(), "it went on"
    assert not set(second.sizes()) & set(first.sizes()), "and repeated nothing"
    found, before = result.calibration.finding(), first.sizes()[0]
    assert found is not None
    assert found.train.batch > before


def test_training_uses_the_verified_result_of_an_unfinished_search(harness: Harness) -> None:
    """Its own time limit is the default, which may be longer than that of the calibration."""
    harness.calibrate(ScriptedProbe(clock=harness.clock, takes_s=15), options(GIB, time_limit_s=20))
    assert harness.calibrate(None, need=Need(rehearsed=False, may_measure=False)).fresh
    with pytest.raises(NoCalibration, match="did not finish"):
        harness.calibrate(None, need=Need(rehearsed=False, may_measure=False, require_settled=True))


def test_another_objective_keeps_the_capacities_of_an_unfinished_search(harness: Harness) -> None:
    before = harness.calibrate(
        ScriptedProbe(clock=harness.clock, takes_s=15), options(GIB, objective="memory", time_limit_s=20)
    ).calibration
    after = harness.calibrate(ScriptedProbe(), options(GIB, effective_batch=16, time_limit_s=600)).calibration
    assert before.status == after.status == "unsettled"
    assert [finding.train for finding in after.findings] == [finding.train for finding in before.findings]


def test_a_signal_during_the_evaluation_of_a_probe_keeps_the_training_result(harness: Harness) -> None:
    class Stopped(ScriptedProbe):
        def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
            report = super().observe(request)
            if isinstance(request, ProbeRequest) and request.evaluation_steps:
                raise InterruptedAfterTraining(Interrupted(2), report)
            return report

    result = harness.calibrate(Stopped(), options(GIB, max_batch=8))
    assert isinstance(result.stopped, Interrupted)
    finding = result.calibration.finding()
    assert finding is not None
    assert finding.train.batch == 8
    assert saved(harness).status == "unsettled"


def test_a_search_stopped_by_a_signal_continues_in_the_next_run(harness: Harness) -> None:
    harness.calibrate(interrupting(2))
    result = harness.calibrate(ScriptedProbe())
    assert not result.fresh
    assert result.calibration.status == "complete"


def test_max_probes_limits_the_number_of_probes(harness: Harness) -> None:
    probe = ScriptedProbe()
    result = harness.calibrate(probe, options(GIB, max_probes=1))
    assert len(probe.requests) == 1
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


def test_an_interruption_keeps_verified_results(harness: Harness) -> None:
    probe = interrupting(2)
    result = harness.calibrate(probe)
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.status == "unsettled"
    assert Undone(part="stopped", text="stopped by signal 2") in result.calibration.undone
    assert saved(harness) == result.calibration
    assert harness.journal.exists()
    assert probe.closed == 1


def test_an_interruption_before_a_verified_result_saves_a_partial_calibration(harness: Harness) -> None:
    result = harness.calibrate(interrupting(0))
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.status == "partial"
    assert saved(harness).status == "partial"


def test_an_interruption_during_a_search_returns_the_best_size(harness: Harness) -> None:
    """The first probe fitted: what was verified is an answer, though the search was not over."""
    result = harness.calibrate(interrupting(1))
    assert isinstance(result.stopped, Interrupted)
    finding = result.calibration.finding()
    assert finding is not None
    assert finding.train.batch == best_of(result.calibration.measurements)


def earlier_version(harness: Harness) -> Path:
    """A valid calibration, in the file where earlier versions kept it."""
    harness.calibrate(ScriptedProbe())
    return harness.path.rename(harness.path.with_name(NAME))


def test_a_calibration_of_an_earlier_version_is_reused_for_a_new_plan(harness: Harness) -> None:
    earlier = earlier_version(harness)
    measured = saved(harness, earlier).measurements
    probe = ScriptedProbe()
    result = harness.calibrate(probe, options(GIB, effective_batch=999))
    assert probe.sizes() == []
    assert result.calibration.measurements == measured
    assert saved(harness).effective_batch == 999


def test_an_interrupted_calibration_does_not_hide_a_valid_calibration(harness: Harness) -> None:
    earlier = earlier_version(harness)
    result = harness.calibrate(interrupting(0), force=True)
    assert result.calibration.status == "partial"
    assert not harness.path.exists()
    assert saved(harness, earlier).status == "complete"
    assert harness.calibrate(ScriptedProbe()).path == earlier
