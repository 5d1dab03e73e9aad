"""What becomes of samples with one to three images, and what is said of those that do not go together."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator, HeterogeneousSample
from batchcal.workload.data.sample_size import nest_bytes
from batchcal.workload.step import move

SECOND = torch.tensor([0.0, 1.0, 0.0])


def image(*size: int, channels: int = 1) -> Tensor:
    """Nowhere 0, so that padding can be told apart."""
    return 1 + torch.rand(channels, *size, generator=torch.Generator().manual_seed(sum(size)))


def sample(*images: Tensor, kind: str = "T1", label: int | float | Tensor | None = None) -> HeterogeneousSample:
    return HeterogeneousSample(images=images, task_type=kind, label=label)


def mixed() -> list[HeterogeneousSample]:
    """Three task types with labels of three kinds: a class, a value, a vector."""
    return [
        HeterogeneousSample(images=[image(4, 6)], task_type="T1", task_id=7, input_ids=torch.tensor([5, 6, 7]), label=2),
        HeterogeneousSample(images=[image(8, 3), image(2, 2)], task_type="T2", task_id=8, label=0.25),
        HeterogeneousSample(
            images=[image(5, 5)] * 3, task_type="T3", task_id=9, input_ids=torch.tensor([3]), label=torch.eye(3)[1]
        ),
        HeterogeneousSample(images=[image(1, 1)], task_type="T1", task_id=10, label=0),
    ]


def collated(*samples: HeterogeneousSample, **options: float) -> HeterogeneousBatch:
    return HeterogeneousCollator(padding_value=options.get("padding_value", 0.0))(samples or mixed())


def test_the_masks_mark_every_image_and_the_rest_is_padding() -> None:
    samples = mixed()
    batch = HeterogeneousCollator(padding_value=-1.0)(samples)
    assert batch.pixel_values.shape == (4, 3, 1, 8, 6)
    assert batch.image_mask.tolist() == [[True, False, False], [True, True, False], [True, True, True], [True, False, False]]
    for row, one in enumerate(samples):
        for place, picture in enumerate(one.images):
            height, width = picture.shape[1:]
            assert batch.image_sizes[row, place].tolist() == [height, width]
            assert torch.equal(batch.pixel_values[row, place, :, :height, :width], picture)
    mask = batch.pixel_mask().unsqueeze(2)
    assert mask.shape == batch.pixel_values.shape
    assert torch.equal(batch.pixel_values == -1.0, ~mask)


def test_places_index_the_images_row_by_row() -> None:
    samples = mixed()
    batch = HeterogeneousCollator()(samples)
    assert batch.image_counts == (1, 2, 3, 1)
    found = batch.pixel_values.flatten(0, 1)[batch.places()]
    pictures = [picture for one in samples for picture in one.images]
    assert len(found) == len(pictures)
    for place, picture in zip(found, pictures, strict=True):
        height, width = picture.shape[1:]
        assert torch.equal(place[:, :height, :width], picture)


def test_volumes_are_collated_with_their_depth() -> None:
    batch = collated(sample(image(4, 6, 3, channels=2)), sample(image(2, 7, 5, channels=2), image(1, 1, 1, channels=2)))
    assert batch.pixel_values.shape == (2, 2, 2, 4, 7, 5)
    assert batch.image_sizes.tolist() == [[[4, 6, 3], [0, 0, 0]], [[2, 7, 5], [1, 1, 1]]]
    assert batch.pixel_mask().sum((2, 3, 4)).tolist() == [[72, 0], [70, 1]]


def test_task_types_ids_and_text_are_collated() -> None:
    batch = collated()
    assert batch.task_types == ("T1", "T2", "T3", "T1")
    assert batch.task_ids.tolist() == [7, 8, 9, 10]
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 0, 0], [3, 0, 0], [0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_a_batch_without_text_has_no_input_ids() -> None:
    batch = collated(sample(image(2, 2)))
    assert batch.input_ids is None
    assert batch.attention_mask is None


def test_each_task_type_keeps_the_dtype_of_its_labels() -> None:
    labels = collated().labels
    assert {kind: (of.rows.tolist(), of.values.dtype) for kind, of in labels.items()} == {
        "T1": ([0, 3], torch.int64),
        "T2": ([1], torch.float32),
        "T3": ([2], torch.float32),
    }
    assert labels["T1"].values.tolist() == [2, 0]
    assert labels["T3"].values.tolist() == [[0.0, 1.0, 0.0]]


def test_samples_without_a_label_have_no_label_row() -> None:
    labels = collated(sample(image(2, 2)), sample(image(2, 2), label=1), sample(image(2, 2), kind="T2")).labels
    assert list(labels) == ["T1"]
    assert labels["T1"].rows.tolist() == [1]


def test_label_dtypes_converts_integer_labels_to_float() -> None:
    collate = HeterogeneousCollator(label_dtypes={"T1": torch.float32})
    labels = collate([sample(image(2, 2), label=1), sample(image(2, 2), label=0.5)]).labels
    assert labels["T1"].values.tolist() == [1.0, 0.5]
    assert labels["T1"].values.dtype == torch.float32


def test_max_images_pads_every_batch_to_the_same_image_count() -> None:
    batch = HeterogeneousCollator(max_images=5)([sample(image(2, 2))])
    assert batch.pixel_values.shape == (1, 5, 1, 2, 2)
    assert batch.image_mask.sum() == 1


def test_rows_returns_the_matching_part_of_the_batch() -> None:
    batch = collated()
    part = batch.rows(1, 4)
    assert len(part) == 3
    assert part.task_types == ("T2", "T3", "T1")
    assert part.pixel_values.data_ptr() == batch.pixel_values[1].data_ptr()
    assert torch.equal(part.image_mask, batch.image_mask[1:4])
    assert part.input_ids is not None
    assert part.input_ids.tolist() == [[0, 0, 0], [3, 0, 0], [0, 0, 0]]
    assert {kind: of.rows.tolist() for kind, of in part.labels.items()} == {"T2": [0], "T3": [1], "T1": [2]}
    assert part.labels["T1"].values.tolist() == [0]


def test_rows_split_a_batch_without_loss_at_any_index() -> None:
    batch = collated()
    for cut in (1, 2, 3):
        first, second = batch.rows(0, cut), batch.rows(cut, 4)
        assert torch.equal(torch.cat([first.pixel_values, second.pixel_values]), batch.pixel_values)
        for kind, labels in batch.labels.items():
            found = [
                (row + shift, value)
                for part, shift in ((first, 0), (second, cut))
                if kind in part.labels
                for row, value in zip(part.labels[kind].rows.tolist(), part.labels[kind].values.tolist(), strict=True)
            ]
            assert found == list(zip(labels.rows.tolist(), labels.values.tolist(), strict=True))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 1), (-1, 2), (0, 5)])
def test_row_indices_outside_the_batch_are_rejected(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not in a batch of 4 samples"):
        collated().rows(start, stop)


def test_a_heterogeneous_batch_can_be_moved_and_measured() -> None:
    batch = collated()
    moved = move(batch, torch.device("meta"))
    assert isinstance(moved, HeterogeneousBatch)
    assert moved.task_types == batch.task_types
    assert {moved.pixel_values.device.type, moved.image_mask.device.type, moved.labels["T2"].values.device.type} == {"meta"}
    assert nest_bytes(batch) > batch.pixel_values.nbytes


def test_a_heterogeneous_batch_can_be_pickled() -> None:
    batch = collated()
    again = pickle.loads(pickle.dumps(batch))
    assert isinstance(again, HeterogeneousBatch)
    assert torch.equal(again.pixel_values, batch.pixel_values)
    assert torch.equal(again.labels["T3"].values, batch.labels["T3"].values)


def test_a_heterogeneous_batch_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    batch = collated()
    pinned = batch.pin_memory()
    assert pinned.labels["T1"].values.data_ptr() != batch.labels["T1"].values.data_ptr()
    assert torch.equal(pinned.pixel_values, batch.pixel_values)


GOOD = sample(image(2, 2))
BAD: dict[str, tuple[HeterogeneousSample, str]] = {
    "no image": (sample(kind="T2"), "sample 1 of the batch, of task type 'T2', has no image"),
    "channels": (
        sample(image(2, 2), image(2, 2, channels=3)),
        "sample 1 .* image 1 with another number of channels: 3 instead of 1",
    ),
    "a volume among images": (sample(image(2, 2, 2)), "sample 1 .* image 0 with another number of dimensions: 4"),
    "dtype": (sample(image(2, 2).double()), "sample 1 .* dtype: torch.float64"),
    "no channel": (sample(torch.ones(2, 2)), r"sample 1 .* image 0 of shape \(2, 2\)"),
    "nothing in it": (sample(torch.ones(1, 0, 2)), r"sample 1 .* image 0 of shape \(1, 0, 2\)"),
    "too many": (sample(*[image(2, 2)] * 4), "sample 1 .* has 4 images, but max_images is 3"),
    "text of a batch": (replace(GOOD, input_ids=torch.ones(1, 3, dtype=torch.int64)), r"sample 1 .* input_ids of shape \(1, 3\)"),
    "text of numbers": (replace(GOOD, input_ids=torch.ones(3)), "sample 1 .* torch.float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_for_an_incompatible_sample_names_the_sample(name: str) -> None:
    bad, message = BAD[name]
    with pytest.raises(UserCodeError, match=message):
        HeterogeneousCollator(max_images=3)([GOOD, bad])


def test_mixed_label_dtypes_within_a_task_type_are_rejected_with_a_suggestion() -> None:
    with pytest.raises(UserCodeError, match=r"sample 1 .* label of shape \(\) and dtype torch.float32") as caught:
        collated(sample(image(2, 2), label=1), sample(image(2, 2), label=0.5))
    assert "label_dtypes={'T1'" in caught.value.try_
    with pytest.raises(UserCodeError, match=r"label of shape \(3,\)"):
        collated(sample(image(2, 2), label=torch.ones(2)), sample(image(2, 2), label=torch.ones(3)))


def test_integer_images_cannot_be_padded_with_a_fraction() -> None:
    with pytest.raises(UserCodeError, match=r"torch.uint8 cannot be padded with 0.5"):
        collated(sample(torch.ones(1, 2, 2, dtype=torch.uint8)), padding_value=0.5)


def test_an_empty_batch_and_max_images_of_0_are_rejected() -> None:
    with pytest.raises(UserCodeError, match="no samples"):
        HeterogeneousCollator()([])
    with pytest.raises(UsageError, match="max_images = 0"):
        HeterogeneousCollator(max_images=0)
