"""A large list of small Python objects: reading one writes its reference count, so a forked worker comes to hold a copy."""

import torch
from torch import nn

import batchcal

ROWS, EACH = 1_000_000, 20


class Records(torch.utils.data.Dataset):
    def __init__(self):
        self.records = [(str(row), [float(row)]) for row in range(ROWS)]

    def __len__(self):
        return ROWS // EACH

    def __getitem__(self, index):
        total = 0.0
        for name, values in self.records[index * EACH : (index + 1) * EACH]:
            total += len(name) + values[0]
        return torch.full((200,), total / 1e7)


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(200, 1500), nn.ReLU(), nn.Linear(1500, 1))
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 1e-6),
        train_data=Records(),
        loss=lambda model, batch: model(batch).square().mean(),
    )
