"""Samples are objects of an own class. Six of them, late in the dataset, are a thousand times larger than the others."""

import torch
from torch import nn

import batchcal


class Cloud:
    """Points, and to which cloud each belongs."""

    def __init__(self, points, owner):
        self.points, self.owner = points, owner

    def to(self, device):
        return Cloud(self.points.to(device), self.owner.to(device))


class Clouds(torch.utils.data.Dataset):
    def __len__(self):
        return 2400

    def __getitem__(self, index):
        count = 25_000 if index > 1700 and index % 100 == 7 else 25
        points = torch.randn(count, 24, generator=torch.Generator().manual_seed(index))
        return Cloud(points, torch.zeros(count, dtype=torch.long))


def collate(clouds):
    owner = torch.cat([cloud.owner + place for place, cloud in enumerate(clouds)])
    return Cloud(torch.cat([cloud.points for cloud in clouds]), owner)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 300), nn.Linear(300, 1)

    def forward(self, cloud):
        hidden = torch.relu(self.first(cloud.points))
        pooled = torch.zeros(int(cloud.owner[-1]) + 1, 300).index_reduce(0, cloud.owner, hidden, "mean", include_self=False)
        return self.second(pooled)


def task(device=None):
    torch.manual_seed(1)
    model = Pooled()
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 1e-3),
        train_data=Clouds(),
        loss=lambda model, cloud: model(cloud).square().mean(),
        collate_fn=collate,
    )
