"""The dataset starts processes of its own, which a daemonic worker may not."""

import multiprocessing
import time

import torch
from torch import nn

import batchcal


def half(value):
    time.sleep(0.003)
    return value / 2


class Parallel(torch.utils.data.Dataset):
    pool = None

    def __len__(self):
        return 400

    def __getitem__(self, index):
        if self.pool is None:
            self.pool = multiprocessing.get_context("fork").Pool(2)
        return torch.full((32,), float(sum(self.pool.map(half, [index % 9, index % 5]))))

    def __getstate__(self):
        return {}


def task(device=None):
    torch.manual_seed(1)
    model = nn.Linear(32, 32)
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 1e-3),
        train_data=Parallel(),
        loss=lambda model, batch: model(batch).square().mean(),
    )
