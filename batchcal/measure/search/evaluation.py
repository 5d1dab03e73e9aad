"""What is different in the search for evaluation's batch: it comes after training, and decides nothing but its own speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.memory_model import UNBOUNDED, MemoryModel, ShapePoint
from batchcal.calibration.schema import Finding, Measurement
from batchcal.guard.outcome import Fits
from batchcal.measure.search.prior import Prior

EVAL_EXPANSION: Final = 2
EVAL_PRECISION: Final = 0.75
EVAL_GAIN: Final = 1.1
"""Evaluation's batch decides nothing but its own speed; its static curve misses what fused kernels hold (a transformer's fast
path: 10x). So it is found by doubling what training takes, for as long as a doubling makes it a tenth faster; after one that
does not fit nothing in between is tried. On a CPU it is flat up here: 877 and 920 samples/s at 249 and 498 volumes."""

EVAL_MISSES: Final = 3
"""Where neither training's own batch nor a quarter of it fits, the trouble is what training leaves and not evaluation's size."""


def mapped_share(trained: Finding) -> float:
    """Of what training takes at its capacity: in blocks that are mapped one by one."""
    return trained.train_memory.mapped_share(trained.train.batch)


def beside_training(trained: Finding, shape: Sequence[ShapePoint], ratio: float, budget_bytes: int) -> int:
    """The largest evaluation batch to try in a heap that fragments. Up to training's own batch its blocks go where training's
    were; larger ones need room beside all that training's heap keeps."""
    train, memory = trained.train, trained.train_memory
    kept = memory.base_bytes + memory.ratio * memory.heap(train.batch)
    beside = MemoryModel(base_bytes=kept, ratio=ratio, shape=tuple(shape), source="")
    return max(train.batch, beside.largest_within(budget_bytes, ceiling=UNBOUNDED))


def no_faster(before: Measurement | None, best: Measurement | None) -> bool:
    """Whether the larger of two batches that fit is hardly faster."""
    if before is None or best is None or best is before:
        return False
    if not isinstance(before.outcome, Fits) or not isinstance(best.outcome, Fits):
        return False
    return best.outcome.samples_per_s < before.outcome.samples_per_s * EVAL_GAIN


def larger_budget(budget_bytes: int, measured: Measurement) -> float:
    """Evaluation comes after training, in a heap that looks different every time. At training's own batch it takes the room that
    training took (a transformer, four times: 0-25 MiB more); a larger one leaves the allocator's spread free.
    """
    return budget_bytes * (1 - Prior.of(measured.device, measured.allocator).spread)
