"""Two more worlds for the race: data that is heavier than the model, and a model that is mostly Python."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from batchcal.workload.task import Task

CLASSES = 10


class Augmented(Dataset[object]):
    """Images whose augmentation takes milliseconds of one core: blurred, turned, noised, each by itself."""

    def __init__(self, samples: int = 8192) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 96, 96, generator=generator)
        for _ in range(6):
            image = functional.avg_pool2d(image.unsqueeze(0), 3, stride=1, padding=1).squeeze(0)
            image = image.roll((1, 2), (1, 2)) + 0.01 * torch.rand(3, 96, 96, generator=generator)
        return image[:, ::3, ::3].contiguous(), index % CLASSES


class Chain(nn.Module):
    """So many small operators, one after the other, that Python decides how fast they come."""

    def __init__(self, depth: int = 120, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs)) + inputs
        return inputs


class Rows(Dataset[object]):
    def __len__(self) -> int:
        return 16_384

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = torch.full((16,), index % 7 / 7)
        return row, row.sum()


def input_bound() -> Task:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, CLASSES)
    )

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return functional.cross_entropy(model(batch[0]), batch[1])

    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), train_data=Augmented(), loss=loss)


def overhead() -> Task:
    model = Chain()

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return functional.mse_loss(model(batch[0]).sum(1), batch[1])

    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.001), train_data=Rows(), loss=loss)
