"""How long a probe goes on before its peak is believed."""

from __future__ import annotations

import pytest

from batchcal.calibration.schema import Mode
from batchcal.measure.search.settling import least_steps, stands_still, steps_before_evaluation
from tests.support.probes import Harness, ScriptedProbe


@pytest.mark.parametrize(
    ("peaks", "still"),
    [([], False), ([100, 100], False), ([100, 100, 100], True), ([90, 100, 100], False), ([90, 1000, 1003, 1004], True)],
)
def test_a_peak_is_stable_after_two_steps_without_growth(peaks: list[int], still: bool) -> None:
    assert stands_still(peaks, least=3) is still


def test_training_needs_an_extra_step_that_accumulates_gradients() -> None:
    assert not stands_still([100, 100, 100], least=4)
    assert stands_still([90, 100, 100, 100], least=4)


@pytest.mark.parametrize(("peaks", "still"), [([100], False), ([100, 100], True), ([90, 100], False), ([90, 100, 100], True)])
def test_a_peak_with_two_required_steps_is_stable_after_one_step_without_growth(peaks: list[int], still: bool) -> None:
    assert stands_still(peaks, least=2) is still


@pytest.mark.parametrize(
    ("mode", "share", "steps"),
    [("train", 0.0, 4), ("train", 0.89, 4), ("train", 0.9, 2), ("eval", 0.5, 3), ("eval", 0.99, 2)],
)
def test_a_large_share_of_mapped_blocks_needs_fewer_steps(mode: Mode, share: float, steps: int) -> None:
    assert least_steps(mode, share) == steps


def test_evaluation_runs_after_more_training_steps_in_a_fragmenting_heap() -> None:
    assert (steps_before_evaluation(0.5), steps_before_evaluation(0.95)) == (3, 1)


def test_a_probe_runs_half_the_steps_without_fragmentation(harness: Harness) -> None:
    mapped, heap = ScriptedProbe(mapped=True), ScriptedProbe()
    harness.calibrate(mapped)
    other = harness.folder / "other"
    other.mkdir()
    Harness(other).calibrate(heap)
    for probe, steps, train_steps in ((mapped, (2, 2), 1), (heap, (4, 3), 3)):
        for mode, least in zip(("train", "eval"), steps, strict=True):
            assert {request.least_steps for request in probe.requests if request.mode == mode} == {least}
        assert {request.train_steps for request in probe.requests if request.mode == "eval"} == {train_steps}
