"""Undo of the changes of a forward and backward pass other than gradients: random numbers and buffers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from batchcal.core.numpy_state import numpy_state, restore_numpy


@dataclass(frozen=True)
class Saved:
    """Copy of a buffer."""

    module: nn.Module
    key: str
    buffer: Tensor
    copy: Tensor

    def restore(self) -> None:
        with torch.no_grad():
            self.buffer.copy_(self.copy)
        if getattr(self.module, self.key) is not self.buffer:
            setattr(self.module, self.key, self.buffer)


@dataclass(frozen=True)
class ProcessGenerators:
    """Saved states of Python's `random` and of `numpy.random`.

    Takes 0.2 ms after a pass, whose data fills the caches: save it once per group, not for each pass.
    """

    python: tuple[object, ...]
    numpy: list[object] | None
    """None: numpy is not loaded."""

    @classmethod
    def now(cls) -> ProcessGenerators:
        return cls(random.getstate(), numpy_state())

    def restore(self) -> None:
        random.setstate(self.python)
        restore_numpy(self.numpy)


@dataclass(frozen=True)
class Before:
    """State before a pass."""

    cpu: Tensor
    accelerator: Tensor | None
    process: ProcessGenerators
    saved: Mapping[str, Saved]
    """Buffers that passes are known to change."""
    marks: Mapping[str, tuple[int, int]]
    """For all buffers: identity of the tensor and number of its changes."""


class Undo:
    """Undo of the changes that passes of `model` on `device` make, except for gradients.

    A buffer is copied before a pass if it is known to change: the buffers of normalization layers, and those with an observed
    change. Before the first pass, all buffers are copied. A table of positions may be as large as the model and never changes:
    a copy before each pass would cost more than it is worth. Plain attributes of a model are not observed.

    The same applies to the random numbers of Python and numpy, which few models draw. After a complete group that did not change
    them, the state at the beginning of a group is used for each of its passes.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        # A walk through all modules before every pass would take longer than everything else here.
        self._holders = [
            (name, module) for name, module in model.named_modules() if next(module.buffers(recurse=False), None) is not None
        ]
        self._changing = {
            f"{name}.{key}"
            for name, module in self._holders
            if isinstance(module, _NormBase)
            for key, _ in module.named_buffers(recurse=False)
        }
        self._last: Mapping[str, tuple[int, int]] | None = None
        self._beginning: ProcessGenerators | None = None
        self._generators_used: bool | None = None
        """True if Python's or numpy's random numbers were drawn between two beginnings. None: there was only one beginning."""

    def beginning(self) -> Before:
        """Save the state that a group that begins now may change, from the loading of its first batch on."""
        now = ProcessGenerators.now()
        if self._beginning is not None and not self._generators_used:
            self._generators_used = now != self._beginning
        self._beginning = now
        return self._before(now)

    def before(self) -> Before:
        """Save the state that the next pass may change. Takes about 20 microseconds, plus the copies."""
        return self._before(
            self._beginning if self._beginning is not None and self._generators_used is False else ProcessGenerators.now()
        )

    def _before(self, process: ProcessGenerators) -> Before:
        marks: dict[str, tuple[int, int]] = {}
        saved: dict[str, Saved] = {}
        for name, module, key, buffer in self._buffers():
            marks[name] = _mark(buffer)
            if self._last is not None and self._last.get(name) != marks[name]:
                self._changing.add(name)
            if self._last is None or name in self._changing:
                saved[name] = Saved(module, key, buffer, buffer.clone())
        self._last = marks
        return Before(
            cpu=torch.get_rng_state(),
            accelerator=None if self._device.type == "cpu" else torch.get_device_module(self._device).get_rng_state(self._device),
            process=process,
            saved=saved,
            marks=marks,
        )

    def restore(self, before: Before) -> str:
        """Restore everything. Return a changed part that had not been saved. Empty: everything is restored."""
        for saved in before.saved.values():
            saved.restore()
        torch.set_rng_state(before.cpu)
        if before.accelerator is not None:
            torch.get_device_module(self._device).set_rng_state(before.accelerator, self._device)
        # The state of the beginning is valid for the pass only if nothing was drawn in between.
        generators_used = (
            before.process is self._beginning and self._generators_used is False and ProcessGenerators.now() != before.process
        )
        before.process.restore()
        now = {name: _mark(buffer) for name, _, _, buffer in self._buffers()}
        lost = [name for name in {**now, **before.marks} if name not in before.saved and before.marks.get(name) != now.get(name)]
        # The restored buffers have changed again, which is not a change by a pass.
        self._last = now
        if generators_used:
            self._generators_used = True
        if lost:
            return f"buffer {lost[0]} of the model"
        return "a random number generator" if generators_used else ""

    def _buffers(self) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
        for name, module in self._holders:
            for key, buffer in module.named_buffers(recurse=False):
                yield f"{name}.{key}", module, key, buffer


def _mark(buffer: Tensor) -> tuple[int, int]:
    return id(buffer), buffer._version
