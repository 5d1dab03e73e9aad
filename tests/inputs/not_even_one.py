"""One sample takes more than two gigabytes."""

import torch
from torch import nn

import batchcal


class Exploding(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, inputs):
        return (inputs * self.scale).repeat(1, 70_000_000).cos().mean()


def task(device=None):
    model = Exploding()
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 1e-3),
        train_data=torch.utils.data.TensorDataset(torch.randn(50, 8)),
        loss=lambda model, batch: model(batch[0]),
    )
