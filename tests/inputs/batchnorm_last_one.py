"""An epoch ends with a group of one sample, which BatchNorm refuses: 193 samples in groups of 64."""

import torch
from torch import nn

import batchcal


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 300), nn.BatchNorm1d(300), nn.GELU(), nn.Linear(300, 3))
    data = torch.utils.data.TensorDataset(torch.randn(193, 20), torch.randint(0, 3, (193,)))

    def loss(model, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(model(inputs), labels)

    return batchcal.Task(model=model, optimizer=torch.optim.Adam(model.parameters()), train_data=data, loss=loss)
