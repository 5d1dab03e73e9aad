"""A batch is a list of images with three channels each; with three of them, channels look like samples.

Run directly: exits with 0 if a batch that does not fit is divided by its images.
"""

import sys

import torch
from torch import nn

import batchcal


class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.randn(3, 6 + index, 6, generator=torch.Generator().manual_seed(index))


def task(device=None):
    torch.manual_seed(1)
    model = nn.Linear(6, 4)

    def loss(model, photos):
        return sum(model(photo).square().mean() for photo in photos) / len(photos)

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Photos(), loss=loss, collate_fn=list)


if __name__ == "__main__":
    from batchcal.runtime.batches import MicroBatch
    from batchcal.train.recovery.splitter import Splitter

    made = task()
    whole = MicroBatch([made.train_data[index] for index in range(3)], 3, (0, 1, 2))
    halves = [half() for half in Splitter(made.train_data, made.collate_fn).halves(whole)]
    images = [tuple(image.shape) for half in halves for image in half.batch]
    print(images)
    sys.exit(0 if images == [(3, 6 + index, 6) for index in range(3)] else 1)
