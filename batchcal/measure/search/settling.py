"""Settling: number of steps until a peak predicts the memory of later steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.schema import Mode

STILL: Final = 0.005
"""Growth below which a peak has settled: tcmalloc repeats its peak within 0.5 %."""
LEAST_STEPS: Final[dict[Mode, int]] = {"train": 4, "eval": 3}
"""Minimum number of steps in a heap: one that creates the optimizer state, one that accumulates, two that add nothing."""
LEAST_STEPS_MAPPED: Final = 2
"""Minimum number of steps if nearly all blocks are mapped one by one. Then almost nothing fragments, every step costs a page
fault for each 4 KiB, and the step that accumulates is the last to add much. In 7.6 GiB, plain trainings of six steps ended at
99.0-99.3 % (handwriting) and at 100.1-101.0 % (patchtst) of the budget within which two steps had stayed."""
MAPPED: Final = 0.9
"""Share of a batch's memory in mapped blocks from which a peak settles in so few steps."""
STEPS_BEFORE_EVALUATION: Final = 3
"""Number of training steps in a probe of an evaluation. After one step the heap has larger holes than after many, and evaluation
would seem to need less."""
STEPS_BEFORE_EVALUATION_MAPPED: Final = 1


def least_steps(mode: Mode, mapped_share: float) -> int:
    """Return the minimum number of steps of a probe, by the share of its blocks that are mapped one by one."""
    return LEAST_STEPS_MAPPED if mapped_share >= MAPPED else LEAST_STEPS[mode]


def steps_before_evaluation(mapped_share: float) -> int:
    """Return the number of training steps before an evaluation, by the share of training's blocks that are mapped one by one."""
    return STEPS_BEFORE_EVALUATION_MAPPED if mapped_share >= MAPPED else STEPS_BEFORE_EVALUATION


def stands_still(peaks: Sequence[int], *, least: int) -> bool:
    """True if at least `least` steps ran and the last two added nothing, or only the last one if two steps are enough."""
    window = min(least, 3)
    return len(peaks) >= least and peaks[-1] <= peaks[-window] * (1 + STILL)
