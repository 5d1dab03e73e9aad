"""A stream without an end, whose length says what an epoch is."""

import torch
from torch import nn

import batchcal


class Sensor(torch.utils.data.IterableDataset):
    def __len__(self):
        return 1500

    def __iter__(self):
        while True:
            yield torch.randn(32)


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 500), nn.ReLU(), nn.Linear(500, 1))
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 1e-3),
        train_data=Sensor(),
        loss=lambda model, batch: model(batch).square().mean(),
    )
