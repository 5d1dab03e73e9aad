"""Generated studies of 1 to 3 small volumes of different sizes, for three kinds of tasks, and their batches."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from batchcal.workload.collator import HeterogeneousSample

Kind = Literal["T1", "T2", "T3"]
KINDS: Final[tuple[Kind, ...]] = ("T1", "T2", "T3")
SLOTS: Final = 3
"""Volumes of a study, at most."""
SHAPES: Final = 3
"""Number of shapes of the body in a volume: ball, shell, box."""
_SMALLEST, _LARGEST = (16, 16, 8), (24, 24, 16)
"""Height, width, depth in voxels."""


class Studies(Dataset[HeterogeneousSample]):
    """T1: the shape of the body; T2: how much it grew; T3: which of the three bodies has another shape: 1, 2 or 3 volumes
    of (1, height, width, depth) in about 0..1; the label is a class from 0 to 2, for T2 the log of the ratio of the radii.

    Depends only on seed and index; stores a few numbers."""

    def __init__(self, samples: int, *, seed: int) -> None:
        self._samples, self._seed = samples, seed

    def __len__(self) -> int:
        return self._samples

    def kind(self, index: int) -> Kind:
        return KINDS[index % len(KINDS)]

    def voxels(self) -> list[float]:
        """Number of voxels of each study, computed without creating them."""
        return [float(sum(math.prod(size) for size in self._plan(index)[1])) for index in range(self._samples)]

    def __getitem__(self, index: int) -> HeterogeneousSample:
        if not 0 <= index < self._samples:
            raise IndexError(index)
        generator, sizes = self._plan(index)
        kind = self.kind(index)
        shape, other, odd = torch.randint(0, 1 << 30, (3,), generator=generator).tolist()
        shapes = [shape % SHAPES] * len(sizes)
        radii = (0.5 + 0.35 * torch.rand(len(sizes), generator=generator)).tolist()
        label: float | int = shapes[0]
        if kind == "T2":
            label = math.log(radii[1] / radii[0])
        elif kind == "T3":
            label = odd % SLOTS
            shapes[odd % SLOTS] = (shape + 1 + other % (SHAPES - 1)) % SHAPES
        volumes = [_volume(*arguments, generator).unsqueeze(0) for arguments in zip(sizes, shapes, radii, strict=True)]
        return HeterogeneousSample(images=volumes, task_type=kind, task_id=KINDS.index(kind), label=label)

    def _plan(self, index: int) -> tuple[torch.Generator, list[tuple[int, int, int]]]:
        """The generator of the study, and the sizes of its volumes: the first that is drawn from it."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        count = KINDS.index(self.kind(index)) + 1
        # The square of a uniform number: most are small, few are large.
        uniform = torch.rand(count, 3, generator=generator).square()
        smallest, largest = torch.tensor(_SMALLEST), torch.tensor(_LARGEST)
        sizes = (smallest + (uniform * (largest - smallest + 1)).long()).tolist()
        return generator, [(height, width, depth) for height, width, depth in sizes]


def _volume(size: tuple[int, int, int], shape: int, radius: float, generator: torch.Generator) -> Tensor:
    # They are broadcast against each other: no array of the full size is created before it is needed.
    axes = [
        torch.linspace(-1, 1, side).abs().view([-1 if axis == at else 1 for axis in range(3)]) for at, side in enumerate(size)
    ]
    if shape == 2:
        inside = (axes[0] < radius) & (axes[1] < radius) & (axes[2] < radius)
    else:
        squared = axes[0].square() + axes[1].square() + axes[2].square()
        inside = squared < radius**2
        if shape == 1:
            inside &= squared > (radius - 0.3) ** 2
    return torch.randn(size, generator=generator).mul_(0.1).add_(inside)


def halved(mask: Tensor) -> Tensor:
    """The mask after a convolution of stride 2: a result is real where its middle voxel is."""
    return functional.max_pool3d(mask, kernel_size=1, stride=2)
