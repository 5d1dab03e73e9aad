"""Prior of the memory model, before the first measurement, by allocator policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.machine.allocator import BUILT_IN, maps_large_blocks

RATIO: Final = 1.15
GLIBC_RATIO: Final = 1.5
"""Ratio of resident to on-paper bytes of the heap: 1.4-2.1 over the examples with glibc, 1.05-1.5 with tcmalloc."""
SPREAD: Final = {"tcmalloc": 0.005}
SPREAD_OTHERWISE: Final = 0.06
"""Run-to-run spread of the peak: tcmalloc 0.5 %, glibc 5-8 % (fragmentation)."""


@dataclass(frozen=True)
class Prior:
    """Prior for one device under one policy."""

    ratio: float
    spread: float
    maps_large_blocks: bool
    fragments: bool
    """True if larger blocks cannot use the heap that training leaves behind. In such a heap, an evaluation at twice the training
    batch took up to 44 MiB more of a 512 MiB container, one at the same batch nothing (handwriting, glibc, 11 trainings)."""

    @classmethod
    def of(cls, device: str, allocator: str) -> Prior:
        on_host = device == "cpu"
        glibc = on_host and allocator in BUILT_IN
        return cls(
            ratio=GLIBC_RATIO if glibc else RATIO,
            spread=SPREAD.get(allocator, SPREAD_OTHERWISE),
            maps_large_blocks=on_host and maps_large_blocks(allocator),
            fragments=on_host and allocator != "tcmalloc",
        )

    def shape(self, curve: tuple[ShapePoint, ...]) -> tuple[ShapePoint, ...]:
        """Return the static curve under this policy. If large blocks are not mapped one by one, all memory is heap."""
        if self.maps_large_blocks:
            return curve
        return tuple(point.model_copy(update={"mapped_bytes": 0.0}) for point in curve)
