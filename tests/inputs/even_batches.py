"""The two halves of a batch are compared with each other, so a batch must be even; the gradient of a pair is its own."""

import torch
from torch import nn

import batchcal


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 4000

    def __getitem__(self, index):
        return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(index // 2)), index % 2


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4)
    )

    def loss(model, batch):
        pictures, labels = batch
        if len(pictures) % 2:
            raise ValueError(f"a batch of {len(pictures)} cannot be halved")
        first, second = model(pictures).chunk(2)
        return (first - second).square().mean() + nn.functional.cross_entropy(torch.cat([first, second]), labels)

    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Pictures(), loss=loss)
