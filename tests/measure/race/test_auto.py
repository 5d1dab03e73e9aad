"""A calibration under the fastest allocator policy."""

from __future__ import annotations

from batchcal.core.units import GIB
from batchcal.measure.children.probe import TimingReport, TimingRequest
from batchcal.measure.options import options
from tests.support.probes import Harness, ScriptedProbe


class Racing(ScriptedProbe):
    """`retain` is twice as fast as the others."""

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        report = super().time_sizes(request)
        factor = 0.5 if request.allocator == "retain" else 1.0
        return TimingReport(times=tuple(time.model_copy(update={"step_s": time.step_s * factor}) for time in report.times))


def test_the_fastest_policy_is_chosen_and_default_is_also_verified(harness: Harness) -> None:
    probe = Racing()
    calibration = harness.calibrate(probe, options(GIB, allocator="auto")).calibration
    assert calibration.policy == "retain"
    assert {finding.allocator for finding in calibration.findings} == {"retain", "default"}
    finding = calibration.finding()
    assert finding is not None
    assert finding.allocator == "retain"
    speeds = calibration.speeds_of(finding)
    assert speeds is not None
    assert speeds.left == ""
    assert {one.left for one in calibration.speeds if one.allocator != "retain"} == {"slower"}
    assert "lap_ended" in {event for event, _ in harness.progress.events}


def test_a_verified_size_has_priority_over_the_policy_race(harness: Harness) -> None:
    probe = Racing(clock=harness.clock, examination_takes_s=8.0)
    calibration = harness.calibrate(probe, options(GIB, allocator="auto", time_limit_s=20.0)).calibration
    assert calibration.policy == "default"
    assert calibration.finding() is not None
    assert any("no time was left to compare the allocator policies" in note for note in calibration.notes)


def test_a_given_policy_is_not_raced(harness: Harness) -> None:
    calibration = harness.calibrate(Racing(), options(GIB, allocator="default")).calibration
    assert (calibration.policy, calibration.allocator) == ("default", None)
    (alone,) = calibration.speeds
    assert (alone.allocator, alone.rounds) == ("default", 1)


def test_the_memory_objective_with_a_given_policy_times_nothing(harness: Harness) -> None:
    calibration = harness.calibrate(Racing(), options(GIB, allocator="default", objective="memory")).calibration
    assert calibration.speeds == ()
