"""Generated studies of 1 to 3 small volumes of different sizes, as three kinds of tasks ask for them, and their batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

Kind = Literal["T1", "T2", "T3"]
KINDS: Final[tuple[Kind, ...]] = ("T1", "T2", "T3")
SLOTS: Final = 3
"""Volumes of a study, at most."""
SHAPES: Final = 3
"""Of the body in a volume: ball, shell, box."""
_SMALLEST, _LARGEST = (8, 16, 16), (16, 24, 24)
"""Depth, height, width in voxels."""


@dataclass(frozen=True)
class Study:
    """One sample: T1 asks for the shape of the body, T2 how much it grew, T3 which of the three bodies has another shape."""

    kind: Kind
    volumes: tuple[Tensor, ...]
    """1, 2 or 3 of them, each (depth, height, width) in about 0..1."""
    target: float
    """T1 and T3: a class from 0 to 2. T2: log of the ratio of the radii."""


@dataclass(frozen=True)
class StudyBatch:
    """All volumes of all studies, padded to the largest, and whose they are."""

    volumes: Tensor
    """(volumes, 1, depth, height, width)."""
    mask: Tensor
    """The same shape: 1 where there is a voxel, 0 where there is padding."""
    study: Tensor
    """(volumes): which study, by its row."""
    slot: Tensor
    """(volumes): which of its volumes, from 0."""
    rows: dict[Kind, Tensor]
    """The rows of each kind that is there."""
    targets: dict[Kind, Tensor]
    studies: int


class Studies(Dataset[Study]):
    """Told by seed and index alone; carries a few numbers."""

    def __init__(self, samples: int, *, seed: int) -> None:
        self._samples, self._seed = samples, seed

    def __len__(self) -> int:
        return self._samples

    def kind(self, index: int) -> Kind:
        return KINDS[index % len(KINDS)]

    def voxels(self) -> list[float]:
        """How many voxels each study has, without making them."""
        return [float(sum(math.prod(size) for size in self._plan(index)[1])) for index in range(self._samples)]

    def __getitem__(self, index: int) -> Study:
        if not 0 <= index < self._samples:
            raise IndexError(index)
        generator, sizes = self._plan(index)
        kind = self.kind(index)
        shape, other, odd = torch.randint(0, 1 << 30, (3,), generator=generator).tolist()
        shapes = [shape % SHAPES] * len(sizes)
        radii = (0.5 + 0.35 * torch.rand(len(sizes), generator=generator)).tolist()
        target = float(shapes[0])
        if kind == "T2":
            target = math.log(radii[1] / radii[0])
        elif kind == "T3":
            target = float(odd % SLOTS)
            shapes[odd % SLOTS] = (shape + 1 + other % (SHAPES - 1)) % SHAPES
        volumes = [_volume(*made, generator) for made in zip(sizes, shapes, radii, strict=True)]
        return Study(kind, tuple(volumes), target)

    def _plan(self, index: int) -> tuple[torch.Generator, list[tuple[int, int, int]]]:
        """The generator of the study, and the sizes of its volumes: the first that is drawn from it."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        count = KINDS.index(self.kind(index)) + 1
        # The square of a uniform number: most are small, few are large.
        drawn = torch.rand(count, 3, generator=generator).square()
        smallest, largest = torch.tensor(_SMALLEST), torch.tensor(_LARGEST)
        sizes = (smallest + (drawn * (largest - smallest + 1)).long()).tolist()
        return generator, [(depth, height, width) for depth, height, width in sizes]


def _volume(size: tuple[int, int, int], shape: int, radius: float, generator: torch.Generator) -> Tensor:
    # Each is broadcast against the others: nothing of the whole size is made before it must be.
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


def collate(studies: Sequence[Study]) -> StudyBatch:
    """Volumes of every study one after another, padded at their ends to the largest depth, height and width among them."""
    owned = [(row, slot, volume) for row, study in enumerate(studies) for slot, volume in enumerate(study.volumes)]
    largest = [max(volume.shape[axis] for _, _, volume in owned) for axis in range(3)]
    volumes = torch.zeros(len(owned), 1, *largest)
    mask = torch.zeros(len(owned), 1, *largest)
    for place, (_, _, volume) in enumerate(owned):
        depth, height, width = volume.shape
        volumes[place, 0, :depth, :height, :width] = volume
        mask[place, 0, :depth, :height, :width] = 1
    rows = {kind: [row for row, study in enumerate(studies) if study.kind == kind] for kind in KINDS}
    return StudyBatch(
        volumes=volumes,
        mask=mask,
        study=torch.tensor([row for row, _, _ in owned]),
        slot=torch.tensor([slot for _, slot, _ in owned]),
        rows={kind: torch.tensor(of_kind) for kind, of_kind in rows.items() if of_kind},
        targets={
            kind: torch.tensor([studies[row].target for row in of_kind], dtype=torch.float32 if kind == "T2" else torch.int64)
            for kind, of_kind in rows.items()
            if of_kind
        },
        studies=len(studies),
    )


def halved(mask: Tensor) -> Tensor:
    """The mask after a convolution of stride 2: a result is real where its middle voxel is."""
    return functional.max_pool3d(mask, kernel_size=1, stride=2)
