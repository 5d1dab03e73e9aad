"""Every sample is held out once, and each fold looks like the whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcal.core.errors import UsageError
from batchcal.hpo.trials.folds import deal


@given(st.lists(st.sampled_from("abc"), min_size=5, max_size=200), st.integers(2, 5), st.integers(0, 3))
def test_folds_hold_out_every_sample_once_and_are_stratified(labels: list[str], folds: int, seed: int) -> None:
    dealt = deal(len(labels), folds, seed=seed, labels=labels)
    assert sorted(index for fold in dealt for index in fold) == list(range(len(labels)))
    sizes = [len(fold) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1
    for label in set(labels):
        counts = [Counter(labels[index] for index in fold)[label] for fold in dealt]
        assert max(counts) - min(counts) <= 1


def test_the_seed_determines_the_folds() -> None:
    assert deal(100, 5, seed=1) == deal(100, 5, seed=1)
    assert deal(100, 5, seed=1) != deal(100, 5, seed=2)


@pytest.mark.parametrize(("samples", "folds"), [(3, 5), (10, 1), (0, 2)])
def test_too_few_samples_for_the_folds_are_rejected(samples: int, folds: int) -> None:
    with pytest.raises(UsageError, match="cannot be divided into"):
        deal(samples, folds, seed=0)
