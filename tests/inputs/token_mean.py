"""The loss is a mean over tokens. `task` does not say so, `weighted` does."""

import torch
from torch import nn
from torch.nn import functional

import batchcal


class Lines(torch.utils.data.Dataset):
    """One line in ten is long."""

    def __len__(self):
        return 2000

    def __getitem__(self, index):
        length = 90 if index % 10 == 3 else 5
        return torch.randint(1, 150, (length,), generator=torch.Generator().manual_seed(index))


def collate(lines):
    return nn.utils.rnn.pad_sequence(lines, batch_first=True)


def loss(model, tokens):
    scores = model(tokens[:, :-1]).transpose(1, 2)
    return functional.cross_entropy(scores, tokens[:, 1:], ignore_index=0)


def tokens_of(tokens):
    return float((tokens[:, 1:] != 0).sum())


def make(weight_of):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(150, 96), nn.Tanh(), nn.Linear(96, 150))
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Lines(), loss=loss, collate_fn=collate, weight_of=weight_of)


def task(device=None):
    return make(None)


def weighted(device=None):
    return make(tokens_of)
