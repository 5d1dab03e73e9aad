"""Datasets that compute each sample from its index: nothing to download, nothing to store, the same in every process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

S = TypeVar("S")
Pair = tuple[Tensor, Tensor]
CLASSES: Final = 10
WORDS: Final = 512
"""Size of the vocabulary; 0 is padding."""


class Generated(Dataset[S], ABC, Generic[S]):
    """`samples` samples, each from a generator seeded with its index."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> S:
        if not 0 <= index < self.samples:
            raise IndexError(index)
        return self.sample(index, torch.Generator().manual_seed(index))

    @abstractmethod
    def sample(self, index: int, generator: torch.Generator) -> S: ...


class Pictures(Generated[Pair]):
    """Noise around a level that depends on the class: (channels, *extent) and the class."""

    def __init__(self, samples: int, channels: int, *extent: int) -> None:
        super().__init__(samples)
        self.shape = (channels, *extent)

    def sample(self, index: int, generator: torch.Generator) -> Pair:
        label = index % CLASSES
        return torch.randn(self.shape, generator=generator) + label / CLASSES, torch.tensor(label)


class Sentences(Generated[Tensor]):
    """Sequences of words, each near the word before it. The length of most is near `typical`, of few up to `longest`."""

    def __init__(self, samples: int, *, typical: int, longest: int) -> None:
        super().__init__(samples)
        self.typical, self.longest = typical, longest

    def length(self, index: int) -> int:
        """Pareto-distributed, with exponent 1.5: one of a thousand sentences is a hundred times as long as the shortest."""
        uniform = torch.rand((), generator=torch.Generator().manual_seed(index + 1_000_003)).item()
        return min(self.longest, int(self.typical * (1 - uniform) ** (-1 / 1.5)))

    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        steps = torch.randint(-2, 3, (self.length(index) + 1,), generator=generator)
        steps[0] += index
        return 1 + steps.cumsum(0) % (WORDS - 1)
