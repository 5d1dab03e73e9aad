"""The dataset fetches whole batches; its collate function passes them on."""

import torch
from torch import nn

import batchcal


class Table(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        self.inputs, self.targets = torch.randn(15_000, 64, generator=generator), torch.randn(15_000, generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices):
        return {"inputs": self.inputs[indices], "targets": self.targets[indices]}


def as_it_is(batch):
    return batch


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 1))

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch["inputs"])[:, 0], batch["targets"])

    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Table(), loss=loss, collate_fn=as_it_is)
