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
def test_a_peak_stands_still_when_two_steps_brought_nothing_new(peaks: list[int], still: bool) -> None:
    assert stands_still(peaks, least=3) is still


def test_a_training_has_a_step_more_in_which_gradients_accumulate() -> None:
    assert not stands_still([100, 100, 100], least=4)
    assert stands_still([90, 100, 100, 100], least=4)


@pytest.mark.parametrize(("peaks", "still"), [([100], False), ([100, 100], True), ([90, 100], False), ([90, 100, 100], True)])
def test_where_two_steps_are_enough_the_last_one_brought_nothing_new(peaks: list[int], still: bool) -> None:
    assert stands_still(peaks, least=2) is still


@pytest.mark.parametrize(
    ("mode", "share", "steps"),
    [("train", 0.0, 4), ("train", 0.89, 4), ("train", 0.9, 2), ("eval", 0.5, 3), ("eval", 0.99, 2)],
)
def test_blocks_that_are_mapped_one_by_one_settle_at_once(mode: Mode, share: float, steps: int) -> None:
    assert least_steps(mode, share) == steps


def test_a_heap_is_trained_in_before_it_is_evaluated_in() -> None:
    assert (steps_before_evaluation(0.5), steps_before_evaluation(0.95)) == (3, 1)


def test_where_nothing_fragments_a_probe_runs_half_the_steps(harness: Harness) -> None:
    mapped, heap = ScriptedProbe(mapped=True), ScriptedProbe()
    harness.calibrate(mapped)
    other = harness.folder / "other"
    other.mkdir()
    Harness(other).calibrate(heap)
    for probe, steps, train_steps in ((mapped, (2, 2), 1), (heap, (4, 3), 3)):
        for mode, least in zip(("train", "eval"), steps, strict=True):
            assert {request.least_steps for request in probe.requests if request.mode == mode} == {least}
        assert {request.train_steps for request in probe.requests if request.mode == "eval"} == {train_steps}
