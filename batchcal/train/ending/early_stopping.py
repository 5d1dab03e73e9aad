"""Detection of trainings that more epochs do not improve."""

from __future__ import annotations

import math
from collections.abc import Mapping

from batchcal.core.errors import UsageError
from batchcal.train.options import TrainOptions


def no_better_since(evaluations: list[Mapping[str, float | None]], options: TrainOptions) -> int:
    """Return the number of epochs since the best result. 0: the last epoch was the best.

    A better result differs by more than `min_delta`. A result that is NaN or infinite is never better.

    Raises:
        UsageError: the watched value was not evaluated.
    """
    best, since = None, 0
    for evaluation in evaluations:
        if options.watch not in evaluation:
            raise UsageError(
                f"early stopping watches {options.watch!r}, but the evaluation has no value of that name",
                known=f"values of the evaluation: {', '.join(sorted(evaluation)) or 'none'}",
                try_=f"watch = {next(iter(sorted(evaluation)), 'loss')!r}",
            )
        watched = evaluation[options.watch]
        value = math.nan if watched is None else watched * (1 if options.watch_mode == "min" else -1)
        if not math.isnan(value) and (best is None or value < best - options.min_delta):
            best, since = value, 0
        else:
            since += 1
    return since
