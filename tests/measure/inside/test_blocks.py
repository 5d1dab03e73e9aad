"""Where the blocks of a step become so large that glibc maps them."""

from __future__ import annotations

import pytest

from batchcal.core.units import MIB
from batchcal.measure.inside.blocks import MAPPED_FROM, curve_of


def test_a_curve_has_a_point_at_the_mapping_threshold() -> None:
    per_sample = MIB // 4
    curve = curve_of({8: (8 * per_sample, 8), 64: (64 * per_sample, 8)})
    by_batch = {point.batch: point for point in curve}
    passes = MAPPED_FROM // per_sample
    assert by_batch[passes - 1].mapped_bytes == 0
    assert by_batch[passes].mapped_bytes == pytest.approx(MAPPED_FROM, rel=0.01)
    assert by_batch[64].mapped_bytes == 0
    assert by_batch[max(by_batch)].mapped_bytes == pytest.approx(max(by_batch) * per_sample, rel=0.01)
    assert all(point.mapped_bytes <= point.bytes for point in curve)


def test_large_blocks_are_mapped_at_every_traced_size() -> None:
    curve = curve_of({2: (40 * MIB,), 4: (80 * MIB, 1024)})
    assert [point.mapped_bytes for point in curve if point.batch in (2, 4)] == [40 * MIB, 80 * MIB]


def test_one_traced_size_is_one_point() -> None:
    assert [(point.batch, point.bytes) for point in curve_of({4: (100, 28)})] == [(4, 128)]
