"""Each sample's negatives are the other samples of its batch, so micro-batches train something else."""

import torch
from torch import nn
from torch.nn import functional

import batchcal


class Views(torch.utils.data.Dataset):
    """Two noisy views of one vector."""

    def __len__(self):
        return 2048

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        vector = torch.randn(48, generator=generator)
        return torch.stack([vector + 0.1 * torch.randn(48, generator=generator) for _ in range(2)])


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(48, 512), nn.GELU(), nn.Linear(512, 24))

    def loss(model, views):
        left, right = functional.normalize(model(views), dim=2).unbind(1)
        scores = left @ right.T / 0.1
        own = torch.arange(len(views), device=views.device)
        return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Views(), loss=loss)
