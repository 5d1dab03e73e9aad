"""The command line is parsed when the module is imported."""

import argparse

import torch
from torch import nn

import batchcal

parser = argparse.ArgumentParser()
parser.add_argument("--hidden", type=int, default=700)
parser.add_argument("--rate", type=float, default=0.05)
options = parser.parse_args()


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 1))
    data = torch.utils.data.TensorDataset(torch.randn(3000, 32))
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), options.rate),
        train_data=data,
        loss=lambda model, batch: model(batch[0]).square().mean(),
    )
