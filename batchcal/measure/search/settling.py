"""Settling: how many steps it takes until a peak says what later steps will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.schema import Mode

STILL: Final = 0.005
"""A peak that grew by less than this has stood still: tcmalloc repeats its peak within 0.5 %."""
LEAST_STEPS: Final[dict[Mode, int]] = {"train": 4, "eval": 3}
"""In a heap: one step that makes the optimizer's state, one that accumulates, two that bring nothing new."""
LEAST_STEPS_MAPPED: Final = 2
"""Where nearly all blocks are mapped one by one next to nothing fragments, every step costs a page fault for each 4 KiB, and the
step that accumulates is the last that brings much. In 7.6 GiB plain trainings of six steps ended at 99.0-99.3 % (handwriting) and
at 100.1-101.0 % (patchtst) of the budget that two steps had stayed within."""
MAPPED: Final = 0.9
"""Share of what a batch takes, from which on a peak settles like that."""
STEPS_BEFORE_EVALUATION: Final = 3
"""Steps of training in an evaluation's probe. After one the heap has larger holes than after many, and evaluation would seem to
need less."""
STEPS_BEFORE_EVALUATION_MAPPED: Final = 1


def least_steps(mode: Mode, mapped_share: float) -> int:
    """Steps that a probe runs at least, by the share of its blocks that are mapped one by one."""
    return LEAST_STEPS_MAPPED if mapped_share >= MAPPED else LEAST_STEPS[mode]


def steps_before_evaluation(mapped_share: float) -> int:
    """Training steps before an evaluation, by the share of training's blocks that are mapped one by one."""
    return STEPS_BEFORE_EVALUATION_MAPPED if mapped_share >= MAPPED else STEPS_BEFORE_EVALUATION


def stands_still(peaks: Sequence[int], *, least: int) -> bool:
    """Whether `least` steps or more were run and the last two brought nothing new; the last one, where two are enough."""
    looked_back = min(least, 3)
    return len(peaks) >= least and peaks[-1] <= peaks[-looked_back] * (1 + STILL)
