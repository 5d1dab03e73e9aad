"""A learned offset belongs to the loss and the optimizer, not to the model."""

import torch
from torch import nn

import batchcal


def task(device=None):
    torch.manual_seed(1)
    model, offset = nn.Linear(16, 1), nn.Parameter(torch.zeros(()))
    generator = torch.Generator().manual_seed(2)
    data = torch.utils.data.TensorDataset(torch.randn(800, 16, generator=generator), torch.randn(800, generator=generator))

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0])[:, 0] + 5 * offset, batch[1] + 2)

    optimizer = torch.optim.SGD([*model.parameters(), offset], 0.003)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=data, loss=loss)
