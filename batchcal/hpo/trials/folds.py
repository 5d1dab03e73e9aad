"""The folds of a cross-validation: the samples that each fold holds out. Pure functions."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

from batchcal.core.errors import UsageError


def deal(samples: int, folds: int, *, seed: int, labels: Sequence[Hashable] | None = None) -> tuple[tuple[int, ...], ...]:
    """Return the indices that each fold holds out: every sample once. Sizes of folds differ by at most one sample.

    With `labels`, each fold has its share of each label, to within one sample.

    Args:
        labels: one label per sample.

    Raises:
        UsageError: there are fewer samples than folds, or fewer than two folds.
    """
    if folds < 2 or samples < folds:
        raise UsageError(
            f"{samples} samples cannot be divided into {folds} folds",
            known="there must be at least two folds, and each fold holds out at least one sample",
            try_="folds = 2",
        )
    if labels is not None and len(labels) != samples:
        raise ValueError(f"{len(labels)} labels for {samples} samples")
    order = random.Random(seed)
    by_label: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(samples):
        by_label[None if labels is None else labels[index]].append(index)
    held_out: list[list[int]] = [[] for _ in range(folds)]
    turn = 0
    for label in sorted(by_label, key=repr):
        indices = by_label[label]
        order.shuffle(indices)
        # Each label continues at the fold where the one before ended, so that remainders are spread over all folds.
        for index in indices:
            held_out[turn % folds].append(index)
            turn += 1
    return tuple(tuple(sorted(indices)) for indices in held_out)
