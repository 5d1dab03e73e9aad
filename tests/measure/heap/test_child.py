"""How far a heap grows, measured in real children."""

from __future__ import annotations

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.measure.heap import counting
from batchcal.measure.heap.growth import growth_factor
from batchcal.measure.heap.trial import HeapReport, HeapRequest
from tests.support.children import fitting, probing, request
from tests.zoo.registry import TASKS

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]

TEXTS = TASKS["documents"].spec
LONG_S = 120.0
"""The trials end by themselves, on a slow machine too."""


def varied(batch: int, *, allowed: int) -> HeapReport:
    with probing(TEXTS) as probe:
        return probe.train_varied(
            HeapRequest(device="cpu", allocator="default", batch=batch, allowed_bytes=allowed, limit_s=LONG_S)
        )


@pytest.mark.smoke("job:batchcal.measure.heap.varied_job:train_varied")
def test_a_heap_grows_over_convolutions_of_changing_lengths() -> None:
    """A plain loop with 7 a batch holds 401 MiB after 16 steps, 521 MiB after 256."""
    report = varied(7, allowed=2 * GIB)
    assert [reading.steps for reading in report.readings] == [4, 8, 16, 32, 64, 128, 256]
    growth = growth_factor(report.readings, 220 * MIB)
    assert growth is not None
    assert growth > 1.3


def test_a_child_that_ran_out_of_memory_reports_its_limit_as_its_peak() -> None:
    report = varied(20, allowed=760 * MIB)
    assert report.why_ended.startswith(("out-of-memory", "suspect"))
    assert report.readings[-1].peak_bytes >= 760 * MIB


@pytest.mark.smoke("job:batchcal.measure.heap.handles_job:count_lost_blocks")
@pytest.mark.parametrize(("name", "batch", "grows"), [("wide-mlp", 1000, True), ("u-net", 100, False)])
def test_a_probe_with_workers_includes_blocks_lost_to_handles(
    name: str, batch: int, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In plain loops of 130 steps the peak of the MLP is 42 % higher with workers, and that of the U-Net is not."""
    monkeypatch.setattr(counting, "LIMIT_S", LONG_S)
    notes: list[str] = []
    with probing(TASKS[name].spec) as probe:
        alone = fitting(probe.measure(request(batch, samples=6)))
    with probing(TASKS[name].spec, notes=notes) as probe:
        probe.examine("cpu", "default", GIB, LONG_S)  # from its curve follows the batch with which blocks are counted
        beside = fitting(probe.measure(request(batch, samples=6, workers=2)))
    assert notes == []  # they were counted
    more = beside.peak.anonymous_bytes - alone.peak.anonymous_bytes
    assert (more > 200 * MIB) is grows
