"""Text pairs and studies: long tails, masks, and the groups and losses that other rooms read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from batchcal.core.errors import UsageError
from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.examples import multiimage, textpair
from batchcal.workload.examples.textpair import Pair, Pairs
from batchcal.workload.examples.volumes import Studies

CPU = torch.device("cpu")


def test_text_lengths_are_long_tailed_and_match_the_texts() -> None:
    pairs = Pairs(4000, vocabulary=512, median_length=24, longest=128, seed=0)
    both = [length for index in range(400) for length in (len(pairs[index].first), len(pairs[index].second))]
    assert sorted(both)[len(both) // 2] == pytest.approx(24, abs=3)
    assert [max(len(pairs[index].first), len(pairs[index].second)) for index in range(400)] == pairs.lengths[:400]
    assert max(pairs.lengths) == 128
    assert sum(length == 128 for length in pairs.lengths) < 40  # the tail is thin


def test_half_of_the_text_pairs_share_a_topic_and_contain_no_padding() -> None:
    pairs = Pairs(1000, vocabulary=512, median_length=24, longest=64, seed=0)
    assert sum(pairs[index].same for index in range(1000)) == pytest.approx(500, abs=60)
    assert all(int(pairs[index].first.min()) > 0 and int(pairs[index].first.max()) < 512 for index in range(1000))


def test_texts_are_padded_to_the_longest_without_changing_the_output() -> None:
    made = textpair.task(CPU, samples=100, d_model=16, n_layers=1)
    made.model.eval()
    short = Pair(torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8]), 1)
    long = Pair(torch.arange(1, 61), torch.arange(1, 31), 0)
    alone, together = textpair.collate([short]), textpair.collate([short, long])
    assert together["tokens"].shape == (4, 60)
    with torch.no_grad():
        torch.testing.assert_close(made.model(together["tokens"])[:1], made.model(alone["tokens"]), rtol=1e-4, atol=1e-5)


def test_the_worst_case_batch_of_texts_has_the_maximum_length() -> None:
    made = textpair.task(CPU)
    batch = WorstCase.of(made, "train", limit_s=1, seed=0).batch(32)
    assert isinstance(batch, dict)
    assert batch["tokens"].shape == (64, 128)


@pytest.mark.parametrize(
    "arguments",
    [{"samples": 0}, {"vocabulary": 16}, {"median_length": 3}, {"longest": 10}, {"longest": 1 << 15}, {"d_model": 30}],
)
def test_invalid_text_arguments_are_rejected(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        textpair.task(CPU, **arguments)


def test_multiimage_samples_have_the_volume_count_of_their_task_type() -> None:
    studies = Studies(300, seed=0)
    for index in range(300):
        study = studies[index]
        assert study.task_type == studies.kind(index)
        assert len(study.images) == int(study.task_type[1])
    sizes = {tuple(volume.shape) for index in range(300) for volume in studies[index].images}
    assert len(sizes) > 50
    assert all(
        channels == 1 and 16 <= height <= 24 and 16 <= width <= 24 and 8 <= depth <= 16
        for channels, height, width, depth in sizes
    )
    assert studies.voxels() == [float(sum(volume.numel() for volume in studies[index].images)) for index in range(300)]


def test_multiimage_labels_match_the_volumes() -> None:
    studies = Studies(600, seed=0)
    grown = [studies[index] for index in range(1, 600, 3)]
    sizes = torch.tensor([[float((volume > 0.5).float().mean()) for volume in study.images] for study in grown])
    labels = torch.tensor([study.label for study in grown])
    assert torch.corrcoef(torch.stack([(sizes[:, 1] / sizes[:, 0]).log(), labels]))[0, 1] > 0.9
    assert {studies[index].label for index in range(0, 600, 3)} == {0, 1, 2}
    assert {studies[index].label for index in range(2, 600, 3)} == {0, 1, 2}


def batch_of(*indices: int) -> HeterogeneousBatch:
    studies = Studies(300, seed=0)
    return HeterogeneousCollator()([studies[index] for index in indices])


def test_the_multiimage_output_of_a_sample_does_not_depend_on_its_batch() -> None:
    made = multiimage.task(CPU, samples=300, width=2)
    with torch.no_grad():
        together = made.model(batch_of(0, 1, 2, 17, 20))
        for kind, index in (("T1", 0), ("T2", 1), ("T3", 2)):
            torch.testing.assert_close(together[kind][:1], made.model(batch_of(index))[kind], rtol=1e-4, atol=1e-5)


def test_the_multiimage_loss_sums_task_types_and_averages_over_samples() -> None:
    made = multiimage.task(CPU, samples=300, width=2)
    assert made.losses is not None
    shares = made.losses(made.model, batch_of(0, 1, 2, 3))
    assert set(shares) == {"T1", "T2", "T3"}
    whole = made.loss(made.model, batch_of(0, 1, 2, 3)).item()
    assert sum(share.item() for share in shares.values()) == pytest.approx(whole, rel=1e-5)
    alone = [made.loss(made.model, batch_of(index)).item() for index in range(4)]
    assert whole == pytest.approx(sum(alone) / 4, rel=1e-4)
    assert set(made.losses(made.model, batch_of(0, 3))) == {"T1"}


def test_the_worst_case_batch_contains_every_task_type() -> None:
    made = multiimage.task(CPU, samples=300, width=2)
    batch = WorstCase.of(made, "train", limit_s=5, seed=0).batch(3)
    assert isinstance(batch, HeterogeneousBatch)
    assert set(batch.labels) == {"T1", "T2", "T3"}
    assert made.group_of is not None
    assert made.group_of(made.train_data[1]) == "T2"


def test_the_metric_of_a_regression_task_is_its_squared_error() -> None:
    made = multiimage.task(CPU, samples=30, width=2)
    assert made.metrics is not None
    with torch.no_grad():
        found = made.metrics(made.model, batch_of(1, 4))
        answer = made.model(batch_of(1, 4))["T2"]
    assert isinstance(answer, Tensor)
    expected = (answer - batch_of(1, 4).labels["T2"].values).square().sum().item()
    assert found["T2_mse"] == pytest.approx((expected, 2.0))
    assert math.isfinite(expected)


@pytest.mark.parametrize("arguments", [{"samples": 0}, {"width": 0}])
def test_invalid_multiimage_arguments_are_rejected(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        multiimage.task(CPU, **arguments)
