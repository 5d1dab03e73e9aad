"""The peak that a heap reaches after many batches of changing shapes, from its first steps."""

from __future__ import annotations

import pytest

from batchcal.core.units import MIB
from batchcal.measure.heap.growth import HORIZON, expected_peak, growth_factor, without_kept_samples
from batchcal.measure.heap.trial import MOST_S, HeapReading, seconds_for

BASE = 220 * MIB


def readings(*mib: int) -> tuple[HeapReading, ...]:
    """Peaks after 4, 8, 16, ... steps."""
    return tuple(HeapReading(steps=4 << place, peak_bytes=each * MIB) for place, each in enumerate(mib))


@pytest.mark.parametrize(
    ("peaks", "task", "measured_mib"),
    [
        ((554, 554, 554, 556, 625, 679, 785), "documents, 13 a batch", 1040),
        ((454, 521, 521, 565, 682), "lstm, 60 a batch", 1046),
        ((406, 406, 406, 406, 477, 578, 731), "lstm, 30 a batch", 701),
        ((570, 570, 570, 575, 600, 961), "documents, 14 a batch", 1094),
    ],
)
def test_the_peak_after_a_thousand_steps_is_predicted_within_the_margin(
    peaks: tuple[int, ...], task: str, measured_mib: int
) -> None:
    """Measured without batchcal, in loops of up to 1,024 random batches. Too little by 15 % is what the default margin bears."""
    assert 0.85 * measured_mib * MIB < expected_peak(readings(*peaks)) < 1.35 * measured_mib * MIB, task


def test_a_stable_heap_is_not_expected_to_grow() -> None:
    assert expected_peak(readings(628, 628, 628, 628, 628)) == 628 * MIB
    assert growth_factor(readings(628, 628, 628, 628, 628), BASE) == 1.0


def test_growth_within_measurement_noise_is_ignored() -> None:
    assert growth_factor(readings(620, 625, 625, 628, 632, 632), BASE) == 1.0


def test_the_growth_factor_excludes_the_base_memory() -> None:
    peaks = readings(420, 470, 520, 620)
    assert growth_factor(peaks, BASE) == pytest.approx((expected_peak(peaks) - BASE) / (200 * MIB))


def test_too_few_steps_give_no_growth_factor() -> None:
    """With 13 a batch the peak of the texts grows from the 64th step on."""
    assert growth_factor(readings(554, 554, 554, 556), BASE) is None
    assert growth_factor(readings(520, 525, 529), BASE) is None, "within the spread of a peak, not to be extrapolated"
    assert growth_factor((), BASE) is None
    assert growth_factor(readings(400), BASE) is None


def test_early_growth_gives_a_growth_factor() -> None:
    early = growth_factor(readings(442, 484, 484, 530), BASE)
    assert early is not None
    assert early > 1.3


def test_an_early_out_of_memory_error_counts_as_growth() -> None:
    ended = HeapReading(steps=5, peak_bytes=900 * MIB)
    assert growth_factor((*readings(400), ended), BASE) == pytest.approx(680 / 180)


def test_the_peak_is_not_extrapolated_beyond_the_horizon() -> None:
    last = HeapReading(steps=HORIZON, peak_bytes=900 * MIB)
    assert expected_peak((*readings(400, 500), last)) == last.peak_bytes


def test_samples_kept_by_the_dataset_do_not_count_as_heap_growth() -> None:
    peaks = readings(400, 400 + 4 * 8, 400 + 12 * 8)
    rest = without_kept_samples(peaks, batch=8, kept_bytes_per_sample=MIB, samples=1 << 20)
    assert [reading.peak_bytes / MIB for reading in rest] == pytest.approx([400] * 3, abs=0.1)
    few = without_kept_samples(peaks, batch=8, kept_bytes_per_sample=MIB, samples=40)
    assert few[-1].peak_bytes / MIB == pytest.approx(400 + 96 - 36.4, abs=0.1), "of 96 drawn from 40, 36 are distinct"
    assert without_kept_samples(peaks, batch=8, kept_bytes_per_sample=MIB, samples=None) == peaks


def test_a_heap_trial_uses_a_share_of_the_remaining_time() -> None:
    assert seconds_for(100.0) == MOST_S
    assert seconds_for(10.0) == pytest.approx(3.0)
    assert seconds_for(1.0) == 0.0
