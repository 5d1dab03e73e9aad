"""A calibration that ends early, at a limit or by a signal: what it answers and keeps, and what it says is undone."""

from __future__ import annotations

from pathlib import Path

from batchcal.calibration.records.undone import Undone
from batchcal.calibration.store import NAME
from batchcal.core.errors import Interrupted, Partial
from batchcal.core.units import GIB
from batchcal.guard.outcome import Outcome
from batchcal.measure.children.probe import ProbeRequest
from batchcal.measure.options import options
from tests.support.probes import KILLED, Desk, ScriptedProbe, best_of, saved


def test_a_time_limit_without_an_answer_is_partial_and_what_there_is_is_saved(invocation: Desk) -> None:
    probe = ScriptedProbe(clock=invocation.clock, examination_takes_s=100)
    result = invocation.calibrate(probe)
    assert isinstance(result.stopped, Partial)
    assert result.stopped.exit_code == 6
    assert "was next" in result.stopped.known
    assert result.calibration.status == "partial"
    assert result.calibration.finding() is None
    assert saved(invocation) == result.calibration
    assert invocation.journal.exists()


def test_an_examination_that_takes_most_of_the_time_still_leaves_a_verified_answer(invocation: Desk) -> None:
    """The share of the search is over by then, the time limit is not."""
    probe = ScriptedProbe(clock=invocation.clock, examination_takes_s=50)
    result = invocation.calibrate(probe)
    finding = result.calibration.finding()
    assert result.stopped is None
    assert finding is not None
    assert finding.train.limited_by == "time-limit"
    assert result.calibration.status == "unsettled"


def test_runs_that_tell_nothing_are_no_proof_that_nothing_fits(invocation: Desk) -> None:
    result = invocation.calibrate(ScriptedProbe(lambda request, time: KILLED))
    assert isinstance(result.stopped, Partial)
    assert result.calibration.status == "partial"
    assert "inconclusive" in " ".join(left.text for left in result.calibration.undone)


def test_a_partial_result_never_replaces_a_calibration(invocation: Desk) -> None:
    invocation.calibrate(ScriptedProbe())
    good = invocation.path.read_bytes()
    result = invocation.calibrate(ScriptedProbe(clock=invocation.clock, examination_takes_s=100), force=True)
    assert isinstance(result.stopped, Partial)
    assert invocation.path.read_bytes() == good


def test_a_partial_calibration_is_not_fresh(invocation: Desk) -> None:
    invocation.calibrate(ScriptedProbe(clock=invocation.clock, examination_takes_s=100))
    result = invocation.calibrate(ScriptedProbe())
    assert not result.fresh
    assert result.calibration.status == "complete"
    assert saved(invocation) == result.calibration
    assert not invocation.journal.exists()


def test_a_time_limit_after_an_answer_returns_it_and_says_what_is_undone(invocation: Desk) -> None:
    probe = ScriptedProbe(clock=invocation.clock, takes_s=70)
    result = invocation.calibrate(probe)
    finding = result.calibration.finding()
    assert finding is not None
    assert result.stopped is None
    assert result.calibration.status == "unsettled"
    assert finding.train.limited_by == "time-limit"
    assert finding.train.batch == probe.sizes()[0]
    assert finding.train.undone
    assert {left.part for left in result.calibration.undone} >= {"search"}
    assert saved(invocation) == result.calibration


def test_max_probes_is_kept(invocation: Desk) -> None:
    probe = ScriptedProbe()
    result = invocation.calibrate(probe, options(GIB, max_probes=1))
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


def test_an_interruption_keeps_what_was_verified(invocation: Desk) -> None:
    probe = interrupting(2)
    result = invocation.calibrate(probe)
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.status == "unsettled"
    assert Undone(part="stopped", text="stopped by signal 2") in result.calibration.undone
    assert saved(invocation) == result.calibration
    assert invocation.journal.exists()
    assert probe.closed == 1


def test_an_interruption_before_anything_was_verified_keeps_the_measurements(invocation: Desk) -> None:
    result = invocation.calibrate(interrupting(0))
    assert isinstance(result.stopped, Interrupted)
    assert result.calibration.status == "partial"
    assert saved(invocation).status == "partial"


def test_an_interruption_within_a_search_returns_the_best_so_far(invocation: Desk) -> None:
    """The first probe fitted: what was verified is an answer, though the search was not over."""
    result = invocation.calibrate(interrupting(1))
    assert isinstance(result.stopped, Interrupted)
    finding = result.calibration.finding()
    assert finding is not None
    assert finding.train.batch == best_of(result.calibration.measurements)


def earlier_version(invocation: Desk) -> Path:
    """A valid calibration, in the file where earlier versions kept it."""
    invocation.calibrate(ScriptedProbe())
    return invocation.path.rename(invocation.path.with_name(NAME))


def test_a_calibration_of_an_earlier_version_is_verified_for_a_plan_and_not_measured_again(invocation: Desk) -> None:
    earlier = earlier_version(invocation)
    measured = saved(invocation, earlier).measurements
    probe = ScriptedProbe()
    result = invocation.calibrate(probe, options(GIB, effective_batch=999))
    assert probe.sizes() == []
    assert result.calibration.measurements == measured
    assert saved(invocation).effective_batch == 999


def test_what_was_interrupted_hides_no_valid_calibration(invocation: Desk) -> None:
    earlier = earlier_version(invocation)
    result = invocation.calibrate(interrupting(0), force=True)
    assert result.calibration.status == "partial"
    assert not invocation.path.exists()
    assert saved(invocation, earlier).status == "complete"
    assert invocation.calibrate(ScriptedProbe()).path == earlier
