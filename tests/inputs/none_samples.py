"""Unreadable samples are None, and collate leaves them out: a quarter of them in `task`, nine of ten in `mostly`."""

import torch
from torch import nn

import batchcal


class Damaged(torch.utils.data.Dataset):
    def __init__(self, per_mille):
        self.per_mille = per_mille

    def __len__(self):
        return 600

    def __getitem__(self, index):
        if (index * 7919) % 1000 < self.per_mille:
            return None
        generator = torch.Generator().manual_seed(index)
        return {"inputs": torch.randn(24, generator=generator), "target": torch.randn((), generator=generator)}


def collate(samples):
    return torch.utils.data.default_collate([sample for sample in samples if sample])


def make(per_mille):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(24, 600), nn.ReLU(), nn.Linear(600, 1))

    def loss(model, batch):
        return nn.functional.l1_loss(model(batch["inputs"])[:, 0], batch["target"])

    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Damaged(per_mille), loss=loss, collate_fn=collate)


def task(device=None):
    return make(250)


def mostly(device=None):
    return make(900)
