"""One sample in twelve has a label; a batch without any gives a constant (`task`), or NaN (`nan`, `weighted`)."""

import torch
from torch import nn

import batchcal


class Mostly(torch.utils.data.Dataset):
    def __len__(self):
        return 600

    def __getitem__(self, index):
        inputs = torch.randn(24, generator=torch.Generator().manual_seed(index))
        return inputs, float(index % 4) if index % 12 == 5 else float("nan")


def labelled(batch):
    return ~batch[1].isnan()


def make(constant, weight_of=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(24, 200), nn.Tanh(), nn.Linear(200, 1))

    def loss(model, batch):
        rows = labelled(batch)
        if constant and not bool(rows.any()):
            return torch.zeros(())
        return nn.functional.mse_loss(model(batch[0][rows])[:, 0], batch[1][rows].float())

    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Mostly(), loss=loss, weight_of=weight_of)


def task(device=None):
    return make(True)


def nan(device=None):
    return make(False)


def weighted(device=None):
    return make(False, lambda batch: float(labelled(batch).sum()))
