"""What a forward and backward pass changes besides gradients, and how it is taken back: random numbers and buffers."""

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
    """A buffer as it was."""

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
    """The random numbers of Python's `random` and of `numpy.random`, as they were.

    0.2 ms after a pass, whose data fills the caches: to be had once a group, not for each pass.
    """

    python: tuple[object, ...]
    numpy: list[object] | None
    """None where numpy is not loaded."""

    @classmethod
    def now(cls) -> ProcessGenerators:
        return cls(random.getstate(), numpy_state())

    def restore(self) -> None:
        random.setstate(self.python)
        restore_numpy(self.numpy)


@dataclass(frozen=True)
class Before:
    """What there was before a pass."""

    cpu: Tensor
    accelerator: Tensor | None
    process: ProcessGenerators
    saved: Mapping[str, Saved]
    """The buffers that passes are known to change."""
    marks: Mapping[str, tuple[int, int]]
    """All buffers: which tensor it was, and how often that had been changed."""


class Undo:
    """Takes back what passes of `model` on `device` change, but for gradients.

    A buffer is copied before a pass where it is known to change: those of normalization layers, and those that were seen to have
    changed. Before the first pass all are. A table of positions may be as large as the model and never changes: to copy it each
    time would cost more than it is worth. What a model keeps in plain attributes is not seen.

    So are the random numbers of Python and numpy, which few models draw: once a whole group left them as they were, those of the
    group's beginning stand for each of its passes.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        # Walking through all modules before every pass would take longer than all else here.
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
        self._drawn: bool | None = None
        """Whether anything between two beginnings drew of Python's or numpy's random numbers. None: there was one beginning."""

    def beginning(self) -> Before:
        """What a group that begins now may change, from the loading of its first batch on."""
        now = ProcessGenerators.now()
        if self._beginning is not None and not self._drawn:
            self._drawn = now != self._beginning
        self._beginning = now
        return self._before(now)

    def before(self) -> Before:
        """What a pass that begins now may change. Some 20 microseconds and the copies."""
        return self._before(self._beginning if self._beginning is not None and self._drawn is False else ProcessGenerators.now())

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
        """Puts everything back. Returns what changed and had not been kept; empty: all is as it was."""
        for saved in before.saved.values():
            saved.restore()
        torch.set_rng_state(before.cpu)
        if before.accelerator is not None:
            torch.get_device_module(self._device).set_rng_state(before.accelerator, self._device)
        # That of the beginning stands for the pass only as long as nothing was drawn in between.
        drawn = before.process is self._beginning and self._drawn is False and ProcessGenerators.now() != before.process
        before.process.restore()
        now = {name: _mark(buffer) for name, _, _, buffer in self._buffers()}
        lost = [name for name in {**now, **before.marks} if name not in before.saved and before.marks.get(name) != now.get(name)]
        # What was put back has changed once more, which is no change that a pass made.
        self._last = now
        if drawn:
            self._drawn = True
        if lost:
            return f"buffer {lost[0]} of the model"
        return "a random number generator" if drawn else ""

    def _buffers(self) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
        for name, module in self._holders:
            for key, buffer in module.named_buffers(recurse=False):
                yield f"{name}.{key}", module, key, buffer


def _mark(buffer: Tensor) -> tuple[int, int]:
    return id(buffer), buffer._version
