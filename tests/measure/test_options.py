"""What is asked for: defaults that depend on the machine, and values that mean nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from batchcal.calibration.schema import Options
from batchcal.core.errors import UsageError
from batchcal.core.units import GIB, MIB
from batchcal.measure.options import options, samples_for


@pytest.mark.parametrize(
    ("limit", "samples"),
    [
        (512 * MIB, 8), (GIB - 1, 8), (GIB, 12), (2 * GIB, 16), (4 * GIB - 1, 16), (4 * GIB, 32), (9 * GIB, 32),
    ],
)  # fmt: skip
def test_the_steps_of_a_probe_follow_the_memory_tier(limit: int, samples: int) -> None:
    assert samples_for(limit) == samples
    assert options(limit).samples == samples


def test_the_smaller_of_memory_limit_and_machine_limit_sets_the_tier() -> None:
    assert options(8 * GIB, memory_limit_bytes=900 * MIB).samples == 8
    assert options(900 * MIB, memory_limit_bytes=8 * GIB).samples == 8


def test_a_requested_number_of_samples_is_used() -> None:
    assert options(64 * GIB, samples=5).samples == 5


@pytest.mark.parametrize(
    ("device", "margin", "headroom"),
    [("cpu", 0.15, 0.6), ("auto", 0.15, 0.6), ("cuda", 0.10, 0.7), ("cuda:1", 0.10, 0.7), ("mps", 0.10, 0.7)],
)
def test_margin_and_headroom_follow_the_device(device: str, margin: float, headroom: float) -> None:
    asked = options(GIB, device=device)
    assert (asked.margin, asked.headroom) == (margin, headroom)


def test_the_auto_device_has_a_separate_accelerator_margin() -> None:
    assert options(GIB, device="auto").accelerator_margin == 0.10
    assert options(GIB, device="auto", margin=0.2).accelerator_margin == 0.2


def test_values_that_torch_or_the_file_cannot_store_are_rejected() -> None:
    with pytest.raises(UsageError):
        options(GIB, workers=2000)
    with pytest.raises(UsageError):
        options(GIB, seed=2**64)


def test_a_margin_of_zero_is_accepted() -> None:
    assert options(GIB, margin=0.0, headroom=0.0).margin == 0.0


def test_requested_options_are_returned_unchanged() -> None:
    asked = options(GIB, max_batch=64, multiple_of=8, allocator="retain", workers=2, effective_batch=256, seed=3, max_probes=4)
    assert (asked.max_batch, asked.multiple_of, asked.allocator, asked.workers) == (64, 8, "retain", 2)
    assert (asked.effective_batch, asked.seed, asked.max_probes) == (256, 3, 4)
    assert asked.time_limit_s == 60.0


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        pytest.param("samples", lambda: options(GIB, samples=0), id="samples 0"),
        pytest.param("max-batch", lambda: options(GIB, max_batch=0), id="max-batch 0"),
        pytest.param("max-batch", lambda: options(GIB, max_batch=-3), id="max-batch -3"),
        pytest.param("multiple-of", lambda: options(GIB, multiple_of=0), id="multiple-of 0"),
        pytest.param("max-probes", lambda: options(GIB, max_probes=0), id="max-probes 0"),
        pytest.param("effective-batch", lambda: options(GIB, effective_batch=0), id="effective-batch 0"),
        pytest.param("workers", lambda: options(GIB, workers=-1), id="workers -1"),
        pytest.param("margin", lambda: options(GIB, margin=1.0), id="margin 1.0"),
        pytest.param("margin", lambda: options(GIB, margin=-0.1), id="margin -0.1"),
        pytest.param("margin", lambda: options(GIB, margin=math.nan), id="margin math.nan"),
        pytest.param("headroom", lambda: options(GIB, headroom=1.5), id="headroom 1.5"),
        pytest.param("time-limit", lambda: options(GIB, time_limit_s=0.0), id="time-limit 0.0"),
        pytest.param("time-limit", lambda: options(GIB, time_limit_s=-5.0), id="time-limit -5.0"),
        pytest.param("time-limit", lambda: options(GIB, time_limit_s=math.nan), id="time-limit math.nan"),
        pytest.param("time-limit", lambda: options(GIB, time_limit_s=math.inf), id="time-limit math.inf"),
        pytest.param("memory-limit", lambda: options(GIB, memory_limit_bytes=0), id="memory-limit 0"),
        pytest.param("memory-limit", lambda: options(GIB, memory_limit_bytes=-1), id="memory-limit -1"),
    ],
)
def test_an_out_of_range_value_is_rejected_with_a_suggestion(name: str, asked: Callable[[], Options]) -> None:
    with pytest.raises(UsageError) as raised:
        asked()
    assert raised.value.what.startswith(name)
    assert raised.value.try_.startswith(f"--{name}")


def test_a_multiple_above_max_batch_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as raised:
        options(GIB, max_batch=4, multiple_of=8)
    assert "multiple of 8" in raised.value.what
