"""The module moves to a folder for its outputs when it is imported."""

import os
import tempfile

import torch
from torch import nn

import batchcal

OUTPUTS = os.path.join(tempfile.gettempdir(), f"outputs-{os.getuid()}")
os.makedirs(OUTPUTS, exist_ok=True)
os.chdir(OUTPUTS)


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 400), nn.Tanh(), nn.Linear(400, 1))
    data = torch.utils.data.TensorDataset(torch.randn(900, 32))
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        train_data=data,
        loss=lambda model, batch: model(batch[0]).square().mean(),
    )
