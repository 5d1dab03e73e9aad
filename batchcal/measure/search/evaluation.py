"""Differences in the search for the evaluation batch: it comes after training, and affects only its own speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED, MemoryModel, ShapePoint
from batchcal.calibration.schema import Finding, Measurement
from batchcal.guard.outcome import Fits
from batchcal.measure.search.prior import Prior

EVAL_EXPANSION: Final = 2
EVAL_PRECISION: Final = 0.75
EVAL_GAIN: Final = 1.1
"""The evaluation batch affects only its own speed, and its static curve does not include the memory of fused kernels (a
transformer's fast path: 10x). So the search doubles the training batch as long as a doubling makes evaluation a tenth faster.
After a size that does not fit, none in between is tried. On a CPU the speed is nearly constant (877 and 920 samples/s at 249 and
498 volumes), so only a search for memory does this there."""

EVAL_MISSES: Final = 3
"""Maximum number of misses. If neither the training batch nor a quarter of it fits, the cause is the memory that training leaves,
not the evaluation batch."""


def mapped_share(trained: Finding) -> float:
    """Share of training's memory at its capacity in blocks that are mapped one by one."""
    return trained.train_memory.mapped_share(trained.train.batch)


def largest_after_training(trained: Finding, shape: Sequence[ShapePoint], ratio: float, budget_bytes: int) -> int:
    """Return the largest evaluation batch to try in a heap that fragments. Up to the training batch, its blocks use the room of
    training's blocks. Larger ones need room in addition to everything that training's heap keeps."""
    train, memory = trained.train, trained.train_memory
    training_bytes = memory.base_bytes + memory.ratio * memory.heap(train.batch)
    memory_after_training = MemoryModel(base_bytes=training_bytes, ratio=ratio, shape=tuple(shape), source="")
    return max(train.batch, memory_after_training.largest_within(budget_bytes, ceiling=UNBOUNDED))


def no_faster(before: Measurement | None, best: Measurement | None) -> bool:
    """True if the larger of two batches that fit is hardly faster."""
    if before is None or best is None or best is before:
        return False
    if not isinstance(before.outcome, Fits) or not isinstance(best.outcome, Fits):
        return False
    return best.outcome.samples_per_s < before.outcome.samples_per_s * EVAL_GAIN


def larger_budget(budget_bytes: int, measured: Measurement) -> float:
    """Return the budget of an evaluation above the training batch, bytes. The heap after training differs in every run. At the
    training batch, evaluation uses the room of training (a transformer, four runs: 0-25 MiB more). A larger batch leaves the
    allocator's spread free.
    """
    return budget_bytes * (1 - Prior.of(measured.device, measured.allocator).spread)
