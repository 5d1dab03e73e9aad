"""Handwritten digits: a small CNN over 28x28 images in MNIST's files, augmented on the fly.

The files that come with batchcal are 1,797 real digits of the UCI repository (see data/SOURCE.txt); `data` takes a folder with
MNIST's own. Training takes about 1.2 MB a sample: a batch of some hundreds fills 1 GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from batchcal.core.errors import UsageError
from batchcal.workload.examples.idx import read_idx, shape_of_idx
from batchcal.workload.task import Task

SHIPPED: Final = Path(__file__).parent / "data"
SIDE: Final = 28
CLASSES: Final = 10
MNIST_EVAL: Final = "t10k"
"""MNIST's name of its second part, which batchcal calls eval."""


class Digits(Dataset[tuple[Tensor, int]]):
    """Images (1, 28, 28) in 0..1 with their digit.

    Stores only the paths: each worker reads the files itself, so the pickled dataset has a few hundred bytes.

    Args:
        samples: number of samples; if the files hold fewer, they are repeated, each time with another augmentation.
        augment: shift by up to two pixels and add noise, by the index alone: sample 7 is the same in every epoch.
    """

    def __init__(self, images: Path, labels: Path, *, samples: int | None, augment: bool, seed: int = 0) -> None:
        counts = shape_of_idx(images), shape_of_idx(labels)
        if counts[0][1:] != (SIDE, SIDE) or counts[1] != counts[0][:1] or not counts[1][0]:
            raise UsageError(
                f"{images.name} and {labels.name} do not belong together",
                known=f"their dimensions are {counts[0]} and {counts[1]}, not (n, {SIDE}, {SIDE}) and (n,)",
                try_="use the images and the labels of the same part of MNIST",
            )
        self._images, self._labels = images, labels
        self._stored = counts[1][0]
        self._samples = self._stored if samples is None else samples
        self._augment = augment
        self._seed = seed
        self._loaded: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self._samples:
            raise IndexError(index)
        images, labels = self._loaded = self._loaded or (read_idx(self._images), read_idx(self._labels))
        image = images[index % self._stored].float().div_(255).unsqueeze(0)
        if self._augment:
            image = _augmented(image, torch.Generator().manual_seed(self._seed * 1_000_003 + index))
        return image, int(labels[index % self._stored])


def _augmented(image: Tensor, generator: torch.Generator) -> Tensor:
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    bordered = functional.pad(image, (2, 2, 2, 2))
    shifted = bordered[:, 2 + down : 2 + down + SIDE, 2 + right : 2 + right + SIDE]
    return shifted.add(torch.randn(shifted.shape, generator=generator), alpha=0.05).clamp_(0, 1)


class SmallCNN(nn.Module):
    """Three stages of two 3x3 convolutions, each stage at half the side and twice the channels.

    Normalises by groups of channels, not over the batch: its gradients are then the same however a batch is split.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, channels * 2, channels * 4)
        layers: list[nn.Module] = []
        before = 1
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.GroupNorm(4, width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before * (SIDE // 8) ** 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 28, 28) -> logits (batch, 10)."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy over the samples."""
    images, digits = batch
    return functional.cross_entropy(model(images), digits)


def metrics(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, tuple[float, float]]:
    """Number of correct samples, and number of samples."""
    images, digits = batch
    right = int((model(images).argmax(dim=1) == digits).sum())
    return {"accuracy": (float(right), float(len(digits)))}


def task(
    device: torch.device,
    *,
    data: str | None = None,
    channels: int = 32,
    learning_rate: float = 1e-3,
    repeat_to: int = 10_000,
    augment: bool = True,
) -> Task:
    """Args:
    data: folder with MNIST's four files, gzipped or not; default: the digits that come with batchcal.
    channels: of the first stage, a multiple of 4. Memory grows in proportion, work with its square.
    repeat_to: training samples an epoch, by repetition; 60000 is MNIST's own number, 0 takes each file's image once.
    """
    if channels < 4 or channels % 4:
        raise UsageError(f"channels = {channels} is not a multiple of 4", try_="channels = 32")
    if repeat_to < 0:
        raise UsageError(f"repeat_to = {repeat_to} is below 0", try_="repeat_to = 60000")
    folder = SHIPPED if data is None else Path(data).absolute()
    model = SmallCNN(channels).to(device)
    train_data = Digits(*_files(folder, "train"), samples=repeat_to or None, augment=augment)
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01),
        train_data=train_data,
        eval_data=Digits(*_files(folder, "eval"), samples=None, augment=False),
        loss=loss,
        metrics=metrics,
        size_of=[1.0] * len(train_data),  # all images have the same size, so no sample must be read
        label_of=lambda sample: sample[1],
    )


def _files(folder: Path, part: str) -> tuple[Path, Path]:
    """The images and the labels of one part, `train` or `eval`."""
    names = [part, MNIST_EVAL] if part == "eval" else [part]
    for name in names:
        for ending in ("", ".gz"):
            pair = folder / f"{name}-images-idx3-ubyte{ending}", folder / f"{name}-labels-idx1-ubyte{ending}"
            if all(path.is_file() for path in pair):
                return pair
    raise UsageError(
        f"{folder} does not contain the {part} part of MNIST",
        known=f"the files of that part are {names[-1]}-images-idx3-ubyte and {names[-1]}-labels-idx1-ubyte, with or without .gz",
        try_="data = 'path/to/MNIST/raw', or remove data to use the digits that come with batchcal",
    )
