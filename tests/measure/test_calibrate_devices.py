"""A calibration where devices and allocators are to choose from: which are measured, and which is chosen."""

from __future__ import annotations

import pytest

from batchcal.core.errors import UsageError
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits, OutOfMemory
from batchcal.measure.children.probe import Observation, ProbeRequest, TimingReport, TimingRequest
from batchcal.measure.options import options
from tests.support.probes import Harness, ScriptedProbe, an_accelerator, saved


def test_a_missing_device_is_a_usage_error_that_lists_available_devices(harness: Harness) -> None:
    harness.environment = harness.environment.model_copy(update={"accelerators": (an_accelerator(),)})
    with pytest.raises(UsageError) as raised:
        harness.calibrate(ScriptedProbe(), options(GIB, device="cuda:3"))
    assert raised.value.known == "devices of this machine: cpu, cuda:0"


def test_an_unknown_allocator_is_rejected_before_any_file_is_written(harness: Harness) -> None:
    with pytest.raises(UsageError):
        harness.calibrate(ScriptedProbe(), options(GIB, allocator="wonderful"))
    assert ".batchcal" not in harness.files()


class TwoDevices(ScriptedProbe):
    """An accelerator that is `speed` times as fast as the CPU."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def measure(self, request: ProbeRequest) -> Observation:
        report = super().measure(request)
        if request.device == "cpu" or not isinstance(report.outcome, Fits):
            return report
        faster = report.outcome.model_copy(update={"samples_per_s": report.outcome.samples_per_s * self._speed})
        return report.model_copy(update={"outcome": faster})

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        report = super().time_sizes(request)
        if request.device == "cpu":
            return report
        return TimingReport(times=tuple(time.model_copy(update={"step_s": time.step_s / self._speed}) for time in report.times))


@pytest.mark.parametrize(("speed", "chosen"), [(3.0, "cuda:0"), (0.2, "cpu")])
def test_auto_measures_both_devices_and_reports_the_faster_device(harness: Harness, speed: float, chosen: str) -> None:
    harness.environment = harness.environment.model_copy(update={"accelerators": (an_accelerator(),)})
    calibration = harness.calibrate(TwoDevices(speed)).calibration
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
def test_only_the_requested_device_is_measured(harness: Harness, asked: str, measured: list[str]) -> None:
    cards = (an_accelerator(), an_accelerator(index=1, free_bytes=8 * GIB))
    harness.environment = harness.environment.model_copy(update={"accelerators": cards})
    calibration = harness.calibrate(ScriptedProbe(), options(GIB, device=asked)).calibration
    assert [budget.device for budget in calibration.budgets] == measured
    assert {one.device for one in calibration.measurements} == set(measured)


def test_the_result_of_an_accelerator_is_limited_by_accelerator_memory(harness: Harness) -> None:
    harness.environment = harness.environment.model_copy(update={"accelerators": (an_accelerator(),)})
    finding = harness.calibrate(ScriptedProbe(), options(GIB, device="cuda", time_limit_s=120)).calibration.finding()
    assert finding is not None
    assert finding.train.limited_by == "accelerator-memory"


def test_the_other_device_is_chosen_if_nothing_fits_on_a_device(harness: Harness) -> None:
    full = an_accelerator(free_bytes=16 * MIB)
    harness.environment = harness.environment.model_copy(update={"accelerators": (full,)})
    calibration = harness.calibrate(ScriptedProbe()).calibration
    assert calibration.status == "complete"
    assert calibration.chosen_device == "cpu"
    assert any(note.startswith("cuda:0 under default: nothing fits") for note in calibration.notes)


def test_another_allocator_and_the_default_allocator_are_both_measured(harness: Harness) -> None:
    """A script that is not re-executed runs under the default."""
    probe = ScriptedProbe()
    calibration = harness.calibrate(probe, options(GIB, allocator="retain")).calibration
    assert probe.examined == [("cpu", "retain"), ("cpu", "default")]
    assert [found.allocator for found in calibration.findings] == ["retain", "default"]
    assert calibration.finding() == calibration.findings[0]
    assert calibration.finding(allocator="default") == calibration.findings[1]


def test_the_result_of_the_default_allocator_is_kept_if_only_it_fits(harness: Harness) -> None:
    probe = ScriptedProbe(lambda request, time: OutOfMemory(source="fence") if request.allocator == "retain" else None)
    result = harness.calibrate(probe, options(GIB, allocator="retain"))
    found = result.calibration.finding(allocator="default")
    assert found is not None
    assert any("under retain: nothing fits" in note for note in result.calibration.notes)
    assert saved(harness).findings == (found,)
