"""The state of one step is the start of the next, so all batches of a process must be of one size."""

import torch
from torch import nn

import batchcal


class Carried(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head, self.state = nn.LSTM(24, 200, batch_first=True), nn.Linear(200, 1), None

    def forward(self, inputs):
        outputs, state = self.cell(inputs, self.state)
        self.state = tuple(each.detach() for each in state)
        return self.head(outputs[:, -1])[:, 0]


class Windows(torch.utils.data.Dataset):
    def __len__(self):
        return 3200

    def __getitem__(self, index):
        return torch.randn(40, 24, generator=torch.Generator().manual_seed(index)), float(index % 2)


def task(device=None):
    torch.manual_seed(1)
    model = Carried()

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1].float())

    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Windows(), loss=loss)
