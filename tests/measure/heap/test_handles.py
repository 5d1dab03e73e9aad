"""Blocks of a step that glibc's heap cannot use again while handles of workers' batches lie there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.core.units import MIB
from batchcal.machine.meters import read_status
from batchcal.measure.heap.counting import LARGEST_BATCH, LEAST_BYTES, SPREAD, counting_batch, is_prime, may_be_lost
from batchcal.measure.heap.handles import FreedBlocks, hold_blocks, lost_blocks
from batchcal.runtime.worker_handles import HANDLES


def test_only_blocks_that_a_step_has_freed_count() -> None:
    model = nn.Sequential(nn.Linear(2000, 1000), nn.ReLU(), nn.Linear(1000, 1))
    samples = torch.zeros(100, 2000)
    with FreedBlocks() as freed:
        model(samples).mean().backward()
    assert freed.largest == 100 * 1000 * 4  # an activation, and not the gradient of 8 MB, which is still there


def test_memory_mapped_blocks_do_not_count() -> None:
    with FreedBlocks() as freed:
        torch.zeros(40 * MIB, dtype=torch.uint8).sum()
    assert freed.largest == 8


def test_a_batch_of_two_tensors_holds_half_as_many_blocks() -> None:
    before = read_status()
    held = hold_blocks([torch.zeros(1), {"label": torch.zeros(1)}], MIB // 2)
    after = read_status()
    assert held is not None
    assert len(held) == HANDLES // 2 * MIB // 2
    assert before is not None
    assert after is not None
    assert after.anonymous_bytes - before.anonymous_bytes >= 30 * MIB
    held.close()


def test_a_step_without_freed_blocks_holds_no_blocks() -> None:
    assert hold_blocks(torch.zeros(1), 0) is None


def test_the_number_of_held_blocks_follows_the_number_of_lost_blocks() -> None:
    held = hold_blocks(torch.zeros(1), MIB // 2, lost=3)
    assert held is not None
    assert len(held) == 3 * MIB // 2
    held.close()
    assert hold_blocks(torch.zeros(1), MIB // 2, lost=0) is None


def test_only_blocks_of_tensors_with_the_batch_dimension_count() -> None:
    model = nn.Linear(100, 1000)
    with FreedBlocks(13) as freed:
        torch.zeros(1000, 100) @ torch.zeros(100, 900)
        model(torch.zeros(13, 100)).sum()
    assert freed.largest == 13 * 1000 * 4


def test_lost_blocks_are_computed_from_memory_growth() -> None:
    assert lost_blocks(220 * MIB, 420 * MIB, 450 * MIB, block_bytes=10 * MIB, most=64) == 3 + SPREAD
    assert lost_blocks(220 * MIB, 420 * MIB, 425 * MIB, block_bytes=10 * MIB, most=64) == 0  # within the spread of a peak
    assert lost_blocks(220 * MIB, 222 * MIB, 223 * MIB, block_bytes=3000, most=64) == 0  # a few pages
    assert lost_blocks(220 * MIB, 420 * MIB, 920 * MIB, block_bytes=MIB, most=64) == 64
    assert lost_blocks(220 * MIB, 420 * MIB, 450 * MIB, block_bytes=0, most=64) == 64


def test_the_bound_of_lost_blocks_grows_with_the_count() -> None:
    assert [may_be_lost(counted, 64) for counted in (0, 2, 3, 13, 20)] == [0, 2, 7, 57, 64]


def line(bytes_per_sample: float, *batches: int) -> tuple[ShapePoint, ...]:
    return tuple(ShapePoint(batch=batch, bytes=batch * bytes_per_sample) for batch in batches)


@pytest.mark.parametrize("traced", [(1, 2), (2, 4, 8, 16), (1, 1000)])
def test_the_counting_batch_is_prime_and_large_enough(traced: tuple[int, ...]) -> None:
    batch = counting_batch(line(20_000, *traced))
    assert (batch - traced[0]) * 20_000 >= LEAST_BYTES > (batch - traced[0] - 20) * 20_000
    assert is_prime(batch)


def test_the_counting_batch_is_small_and_follows_the_size_rule() -> None:
    assert counting_batch(line(5_000_000, 1, 2)) == 7  # few samples if they are large
    assert counting_batch(line(20_000, 1, 2), multiple_of=8) % 8 == 0
    assert counting_batch(line(1, 1, 2)) == LARGEST_BATCH
    assert counting_batch(line(20_000, 1, 2), most=32) == 31
    assert counting_batch(line(5_000_000, 1, 2), smallest=32) == 37
    assert counting_batch((), multiple_of=2) == 14


def test_a_large_constant_needs_a_larger_batch() -> None:
    constant = tuple(ShapePoint(batch=batch, bytes=100 * MIB + batch * 20_000) for batch in (2, 4))
    assert counting_batch(constant) * 20_000 >= 3 * MIB


@pytest.mark.parametrize(("number", "prime"), [(1, False), (2, True), (9, False), (97, True), (211, True), (1003, False)])
def test_is_prime_detects_prime_numbers(number: int, prime: bool) -> None:
    assert is_prime(number) is prime
