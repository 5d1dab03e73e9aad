"""Samples with a varying number of images or volumes, padded to one tensor; of several task types, each with labels of its own.

loader = batchcal.make_loader(plan, dataset, collate_fn=HeterogeneousCollator(padding_value=-1.0))
for batch in loader:
    features = encoder(batch.pixel_values.flatten(0, 1)).unflatten(0, batch.image_mask.shape)
    pooled = (features * batch.image_mask.unsqueeze(-1)).sum(1) / batch.image_mask.sum(1, keepdim=True)
    for task_type, labels in batch.labels.items():
        loss[task_type] = loss_of[task_type](heads[task_type](pooled[labels.rows]), labels.values)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.units import count_of
from batchcal.workload.step import map_tensors

Label = int | float | Tensor | None
"""A class, a value, or a tensor of them. None: no label."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeterogeneousSample:
    """One sample of a dataset."""

    images: Sequence[Tensor]
    """One or more, each (channels, height, width) or (channels, height, width, depth). Height, width and depth may differ from
    image to image; channels, number of dimensions and dtype are those of all samples."""
    task_type: str
    task_id: int = 0
    """Number of the task in the dataset."""
    input_ids: Tensor | None = None
    """(tokens), integers. None: no text."""
    label: Label = None
    """Has one type and shape within a task type; other task types may differ."""


@dataclass(frozen=True, eq=False)
class TaskLabels:
    """The labels of one task type in a batch."""

    rows: Tensor
    """(labels) int64: which samples of the batch they belong to, rising."""
    values: Tensor
    """(labels, ...): int64 for classes, float32 for values, the dtype of given tensors, or the requested dtype."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeterogeneousBatch:
    """A batch of `HeterogeneousSample`s, with images padded at their ends to the largest height, width and depth of the batch.

    `batchcal.workload.step.move` moves it to a device. torch's DataLoader calls `pin_memory`.
    """

    pixel_values: Tensor
    """(batch, max_images, channels, height, width[, depth]), of the images' dtype."""
    image_mask: Tensor
    """(batch, max_images) bool: True where there is an image. The first of every row is one."""
    image_counts: tuple[int, ...]
    """Images of each row. Numbers, not a tensor: shapes may depend on them where the values of tensors cannot be read."""
    image_sizes: Tensor
    """(batch, max_images, 2 or 3) int64: height, width[, depth] of each image before padding; zeros where there is none."""
    task_types: tuple[str, ...]
    """By row."""
    task_ids: Tensor
    """(batch) int64."""
    input_ids: Tensor | None
    """(batch, tokens) int64, padded at the end to the longest text. None: no sample has text."""
    attention_mask: Tensor | None
    """(batch, tokens) int64: 1 where there is a token, 0 where there is padding. All 0 in a row without text."""
    labels: Mapping[str, TaskLabels]
    """By task type. Labels of different types have different dtypes and shapes (a class, a value, a vector), which one padded
    tensor could not keep. So each type has its own tensor and the rows it belongs to. A type without a sample in the batch, or
    without a label, is absent."""

    def __len__(self) -> int:
        return len(self.task_types)

    def rows(self, start: int, stop: int) -> HeterogeneousBatch:
        """The samples from `start` to `stop` (excluded), as views; only labels are copied.

        Padding does not change, so that a part computes the same as in the complete batch.

        Raises:
            ValueError: the rows do not exist, or there are none.
        """
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"rows {start} to {stop} are not in a batch of {count_of(len(self), 'sample')}")
        labels: dict[str, TaskLabels] = {}
        for task_type in dict.fromkeys(self.task_types[start:stop]):
            task_labels = self.labels.get(task_type)
            if task_labels is None:
                continue
            selected = (task_labels.rows >= start) & (task_labels.rows < stop)
            part = TaskLabels(task_labels.rows[selected] - start, task_labels.values[selected])
            if len(part.rows):
                labels[task_type] = part
        return HeterogeneousBatch(
            pixel_values=self.pixel_values[start:stop],
            image_mask=self.image_mask[start:stop],
            image_counts=self.image_counts[start:stop],
            image_sizes=self.image_sizes[start:stop],
            task_types=self.task_types[start:stop],
            task_ids=self.task_ids[start:stop],
            input_ids=None if self.input_ids is None else self.input_ids[start:stop],
            attention_mask=None if self.attention_mask is None else self.attention_mask[start:stop],
            labels=labels,
        )

    def places(self) -> Tensor:
        """(images) int64: where there is an image in `pixel_values.flatten(0, 1)`, row by row. For an encoder that is not to
        spend its time on places that stay empty: `pixel_values.flatten(0, 1)[batch.places()]`."""
        width = self.image_mask.shape[1]
        indices = [row * width + place for row, count in enumerate(self.image_counts) for place in range(count)]
        return torch.tensor(indices, device=self.image_mask.device)

    def pixel_mask(self) -> Tensor:
        """(batch, max_images, height, width[, depth]) bool: True for pixels of an image, False for padding. Computed on request:
        for one channel it takes a quarter of the memory of the pixels."""
        spatial = self.pixel_values.shape[3:]
        mask = self.image_mask.reshape(*self.image_mask.shape, *(1 for _ in spatial))
        for axis, size in enumerate(spatial):
            inside = torch.arange(size, device=self.image_sizes.device) < self.image_sizes[..., axis].unsqueeze(-1)
            mask = mask & inside.reshape(*self.image_mask.shape, *(size if at == axis else 1 for at in range(len(spatial))))
        return mask

    def pin_memory(self) -> HeterogeneousBatch:
        """A copy in page-locked memory."""
        pinned = map_tensors(self, Tensor.pin_memory)
        assert isinstance(pinned, HeterogeneousBatch)
        return pinned


@dataclass(frozen=True, kw_only=True)
class HeterogeneousCollator:
    """Makes a `HeterogeneousBatch` of `HeterogeneousSample`s: the `collate_fn` of a task or a DataLoader.

    Raises:
        UsageError: `max_images` below 1.
    """

    padding_value: float = 0.0
    """Value of padding pixels."""
    max_images: int | None = None
    """Number of image places in every batch, for a model that requires one shape. None: as many as the batch needs."""
    token_padding: int = 0
    """Value of `input_ids` beyond the end of a text."""
    label_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Task type -> dtype of its labels, such as torch.float32 for values that are sometimes written as whole numbers."""

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise UsageError(f"max_images = {self.max_images} is below 1", try_="max_images=3, or None")

    def __call__(self, samples: Sequence[HeterogeneousSample]) -> HeterogeneousBatch:
        """Collate; one pass over the pixels.

        Raises:
            UserCodeError: no sample at all, or one that does not go with the others: without an image, with more images than
                there are places, of other channels, dimensions or dtype than the first sample's, with text or a label that is
                none. Names the sample by its place in the batch.
        """
        if not samples:
            raise UserCodeError("the batch has no samples", known="the sampler returned an empty list of indices")
        self._check(samples)
        first = samples[0].images[0]
        places = self.max_images or max(len(sample.images) for sample in samples)
        largest = [max(image.shape[axis] for sample in samples for image in sample.images) for axis in range(1, first.dim())]
        pixel_values = first.new_full((len(samples), places, first.shape[0], *largest), self.padding_value)
        image_mask = torch.zeros(len(samples), places, dtype=torch.bool)
        image_sizes = torch.zeros(len(samples), places, len(largest), dtype=torch.int64)
        for row, sample in enumerate(samples):
            image_mask[row, : len(sample.images)] = True
            for place, image in enumerate(sample.images):
                size = image.shape[1:]
                part = pixel_values[row, place]
                for axis, side in enumerate(size, 1):
                    part = part.narrow(axis, 0, side)
                part.copy_(image)
                image_sizes[row, place] = torch.tensor(size)
        input_ids, attention_mask = self._texts(samples)
        return HeterogeneousBatch(
            pixel_values=pixel_values,
            image_mask=image_mask,
            image_counts=tuple(len(sample.images) for sample in samples),
            image_sizes=image_sizes,
            task_types=tuple(sample.task_type for sample in samples),
            task_ids=torch.tensor([sample.task_id for sample in samples], dtype=torch.int64),
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=self._labels(samples),
        )

    def _check(self, samples: Sequence[HeterogeneousSample]) -> None:
        """Every image goes with the first one."""
        reference: Tensor | None = None
        for index, sample in enumerate(samples):
            count = len(sample.images)
            if count == 0:
                raise _bad(
                    index, sample, "has no image", try_="remove it from the dataset, or give it one image that is all padding"
                )
            if self.max_images is not None and count > self.max_images:
                raise _bad(index, sample, f"has {count} images, but max_images is {self.max_images}", try_=f"max_images={count}")
            for place, image in enumerate(sample.images):
                if image.dim() not in (3, 4) or image.numel() == 0:
                    raise _bad(
                        index,
                        sample,
                        f"has image {place} of shape {tuple(image.shape)}",
                        known="the shape is (channels, height, width) or (channels, height, width, depth); no dimension may be 0",
                        try_="image.unsqueeze(0), if the dimension of the channels is missing",
                    )
                reference = image if reference is None else reference
                for quantity, value, first in (
                    ("number of dimensions", image.dim(), reference.dim()),
                    ("number of channels", image.shape[0], reference.shape[0]),
                    ("dtype", image.dtype, reference.dtype),
                ):
                    if value != first:
                        raise _bad(
                            index,
                            sample,
                            f"has image {place} with another {quantity}: {value} instead of {first}",
                            known="images of a batch must agree with the first image; only height, width and depth may differ",
                            try_="convert the images in the dataset's __getitem__",
                        )
        if reference is not None and not reference.is_floating_point() and self.padding_value != int(self.padding_value):
            raise UserCodeError(
                f"images of {reference.dtype} cannot be padded with {self.padding_value}", try_="image.float() in the dataset"
            )

    def _texts(self, samples: Sequence[HeterogeneousSample]) -> tuple[Tensor | None, Tensor | None]:
        if all(sample.input_ids is None for sample in samples):
            return None, None
        for index, sample in enumerate(samples):
            text = sample.input_ids
            if text is not None and (text.dim() != 1 or text.is_floating_point()):
                raise _bad(
                    index,
                    sample,
                    f"has input_ids of shape {tuple(text.shape)} and dtype {text.dtype}",
                    known="input_ids of one sample is a tensor of integers of shape (tokens,); the collator makes the batch",
                    try_="input_ids[0], if the tokenizer returned a batch of one text",
                )
        longest = max(0 if sample.input_ids is None else len(sample.input_ids) for sample in samples)
        input_ids = torch.full((len(samples), longest), self.token_padding, dtype=torch.int64)
        attention_mask = torch.zeros(len(samples), longest, dtype=torch.int64)
        for row, sample in enumerate(samples):
            if sample.input_ids is not None:
                input_ids[row, : len(sample.input_ids)] = sample.input_ids
                attention_mask[row, : len(sample.input_ids)] = 1
        return input_ids, attention_mask

    def _labels(self, samples: Sequence[HeterogeneousSample]) -> dict[str, TaskLabels]:
        rows: dict[str, list[int]] = {}
        values: dict[str, list[Tensor]] = {}
        for index, sample in enumerate(samples):
            if sample.label is None:
                continue
            value = _label(sample.label, self.label_dtypes.get(sample.task_type))
            of_type = values.setdefault(sample.task_type, [])
            if of_type and (value.dtype, value.shape) != (of_type[0].dtype, of_type[0].shape):
                raise _bad(
                    index,
                    sample,
                    f"has a label of shape {tuple(value.shape)} and dtype {value.dtype}",
                    known=f"an earlier label of this task type has shape {tuple(of_type[0].shape)} and dtype {of_type[0].dtype}",
                    try_=f"label_dtypes={{{sample.task_type!r}: torch.float32}}, if only the dtype differs",
                )
            of_type.append(value)
            rows.setdefault(sample.task_type, []).append(index)
        return {task_type: TaskLabels(torch.tensor(rows[task_type]), torch.stack(values[task_type])) for task_type in rows}


def _label(label: int | float | Tensor, dtype: torch.dtype | None) -> Tensor:
    value = torch.as_tensor(label)  # NumPy's numbers keep their type
    if dtype is None and not isinstance(label, Tensor):
        dtype = torch.float32 if value.is_floating_point() else torch.int64
    return value if dtype is None else value.to(dtype)


def _bad(index: int, sample: HeterogeneousSample, problem: str, *, known: str = "", try_: str = "") -> UserCodeError:
    return UserCodeError(f"sample {index} of the batch, of task type {sample.task_type!r}, {problem}", known=known, try_=try_)
