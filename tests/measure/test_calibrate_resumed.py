"""A calibration after a power cut: what was measured is not measured again."""

from __future__ import annotations

import pytest

from batchcal.calibration.schema import Options
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Outcome
from batchcal.measure.children.probe import ProbeRequest, TimingReport, TimingRequest
from batchcal.measure.options import options
from tests.support.probes import Harness, ScriptedProbe


def broken_off(harness: Harness, after: int, asked: Options | None = None) -> list[int]:
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
        harness.calibrate(ScriptedProbe(script, mapped=True), asked)
    return ran


@pytest.mark.parametrize("after", [1, 2, 3])
def test_measurements_before_a_power_failure_are_not_repeated(harness: Harness, after: int) -> None:
    whole = ScriptedProbe(mapped=True)
    asked = options(GIB, objective="memory")
    straight = harness.calibrate(whole, asked, output=harness.folder / "other" / "straight.json").calibration
    ran = broken_off(harness, after, asked)
    probe = ScriptedProbe(mapped=True)
    resumed = harness.calibrate(probe, asked).calibration
    assert len(ran) == after
    assert [request.batch for request in probe.requests] == [request.batch for request in whole.requests][after:]
    assert len(harness.events("probe_kept")) >= after
    assert resumed.finding() == straight.finding()
    assert [one.batch for one in resumed.measurements] == [one.batch for one in straight.measurements]
    assert not harness.journal.exists()


def test_a_second_power_failure_loses_no_measurements(harness: Harness) -> None:
    first = broken_off(harness, 1)
    second = broken_off(harness, 1)
    resumed = harness.calibrate(ScriptedProbe()).calibration
    assert [one.batch for one in resumed.measurements][:2] == first + second
    assert [one.sequence for one in resumed.measurements] == list(range(1, len(resumed.measurements) + 1))


def test_a_resumed_calibration_reuses_measurements_under_a_smaller_budget(harness: Harness) -> None:
    ran = broken_off(harness, 2)
    memory = harness.environment.memory
    less = memory.model_copy(update={"available_bytes": 850 * MIB + int(0.15 * GIB)})
    harness.environment = harness.environment.model_copy(update={"memory": less})
    probe = ScriptedProbe()
    resumed = harness.calibrate(probe).calibration
    budget, finding = resumed.budget(), resumed.finding()
    assert budget is not None
    assert finding is not None
    assert budget.budget_bytes == 850 * MIB
    assert finding.train.peak_bytes <= budget.budget_bytes
    assert ran[0] not in probe.sizes()


def test_force_discards_measurements_of_an_interrupted_calibration(harness: Harness) -> None:
    broken_off(harness, 2)
    probe = ScriptedProbe()
    harness.calibrate(probe, force=True)
    assert len(probe.sizes()) == 2
    assert harness.events("probe_kept") == []


def test_a_policy_race_before_a_power_failure_is_not_repeated(harness: Harness) -> None:
    class PowerCut(BaseException):
        pass

    class Counting(ScriptedProbe):
        laps = 0

        def time_sizes(self, request: TimingRequest) -> TimingReport:
            self.laps += not (request.rounds or request.complete)  # others are of sizes and threads, after the capacities
            return super().time_sizes(request)

    def cut(request: ProbeRequest, time: int) -> Outcome | None:
        raise PowerCut

    raced = options(GIB, allocator="auto", objective="throughput")
    first = Counting(cut, mapped=True)
    with pytest.raises(PowerCut):
        harness.calibrate(first, raced)
    second = Counting(mapped=True)
    calibration = harness.calibrate(second, raced).calibration
    assert first.laps >= len(calibration.speeds) > 1
    assert second.laps == 0
    assert harness.events("race_kept") == [{"device": "cpu", "allocator": calibration.allocator}]
