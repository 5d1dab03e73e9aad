"""A training that takes a while, with workers: to be told to stop."""

import time

import torch
from torch import nn

import batchcal


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 16_000

    def __getitem__(self, index):
        time.sleep(0.0006)
        return torch.full((48,), float(index % 3))


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(48, 400), nn.ReLU(), nn.Linear(400, 1))
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 1e-3),
        train_data=Slow(),
        loss=lambda model, batch: model(batch).square().mean(),
    )
