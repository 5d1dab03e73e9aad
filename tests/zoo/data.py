"""Tasks whose data is harder than their model: heavy-tailed, opaque, copied or cached when it is read."""

from __future__ import annotations

import random
import zlib
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from batchcal.workload.task import Task
from tests.zoo.language import padded, predicted_words
from tests.zoo.samples import CLASSES, WORDS, Generated, Pair, Sentences
from tests.zoo.structures import FEATURES, Graph, GraphNetwork, graph_loss, joined, squared_error

FIELDS: Final = 16
DECODED: Final = 2048


class Reader(nn.Module):
    """Convolutions over words, each of which predicts the next word."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width, padding_idx=0)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3) for _ in range(2))
        self.head = nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embed(words).transpose(1, 2)
        for layer in self.layers:
            hidden = functional.gelu(layer(functional.pad(hidden, (2, 0)))) + hidden
        logits: Tensor = self.head(hidden.transpose(1, 2))
        return logits


def reader_loss(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, -2), batch[:, 1:].flatten(), ignore_index=0)


def documents(samples: int = 2048, width: int = 32) -> Task:
    """Documents of 20 to 3,000 words, heavy-tailed; no cost of a sample is given."""
    model = Reader(width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_data=Sentences(samples, typical=20, longest=3000),
        collate_fn=padded,
        loss=reader_loss,
        weight_of=predicted_words,
    )


class Molecules(Generated[Graph]):
    """Graphs of 20 to 4,000 nodes, heavy-tailed, of a class that only this task knows."""

    def sample(self, index: int, generator: torch.Generator) -> Graph:
        count = min(4000, int(20 * (1 - torch.rand((), generator=generator).item()) ** (-1 / 1.5)))
        label = index % CLASSES
        return Graph(
            torch.randn(count, FEATURES, generator=generator) + label / CLASSES,
            torch.randint(0, count, (2, 4 * count), generator=generator),
            torch.zeros(count, dtype=torch.long),
            torch.tensor([label]),
        )


def molecules(samples: int = 4096, width: int = 64) -> Task:
    model = GraphNetwork(width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_data=Molecules(samples),
        collate_fn=joined,
        loss=graph_loss,
    )


class Compressed(Dataset[bytes]):
    """Compressed words. The longest documents repeat themselves and are among the smallest when compressed."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> bytes:
        generator = random.Random(index)
        if generator.random() < 0.02:
            return zlib.compress(bytes([1 + index % 250]) * 2000)
        return zlib.compress(bytes(generator.choices(range(1, 251), k=generator.randint(40, 120))))


def decompressed(samples: list[bytes]) -> Tensor:
    return padded([torch.frombuffer(bytearray(zlib.decompress(sample)), dtype=torch.uint8).long() for sample in samples])


def compressed(samples: int = 4096, width: int = 32) -> Task:
    """Samples are bytes: what one costs shows only when collate has decompressed it."""
    model = Reader(width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_data=Compressed(samples),
        collate_fn=decompressed,
        loss=reader_loss,
        weight_of=predicted_words,
    )


class Records(Dataset[Pair]):
    """Lists of Python numbers. A forked worker that reads one writes its reference count, and so copies its page."""

    def __init__(self, samples: int) -> None:
        self.records = [[index + place / FIELDS for place in range(FIELDS)] for index in range(samples)]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Pair:
        row = torch.tensor(self.records[index]) / len(self.records)
        return row, row.sum().unsqueeze(0)


def copied_on_read(samples: int = 200_000, width: int = 1024) -> Task:
    """110 MiB of Python objects."""
    model = nn.Sequential(nn.Linear(FIELDS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Records(samples), loss=squared_error)


class Cached(Generated[Pair]):
    """Keeps each sample that it has computed, in the process that computed it."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.cache: dict[int, Pair] = {}

    def sample(self, index: int, generator: torch.Generator) -> Pair:
        if index not in self.cache:
            row = torch.randn(DECODED, generator=generator)
            self.cache[index] = row, row.mean().unsqueeze(0)
        return self.cache[index]


def cached_on_read(samples: int = 20_000, width: int = 1024) -> Task:
    """An epoch fills a cache of 160 MiB."""
    model = nn.Sequential(nn.Linear(DECODED, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Cached(samples), loss=squared_error)
