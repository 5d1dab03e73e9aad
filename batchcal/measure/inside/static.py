"""Curve of memory against batch, without allocating the memory. Runs in a child: the task cannot be used afterwards.

FakeTensor takes 20-40 ms per size. It shows what a line cannot (an in-batch contrastive loss is quadratic), and the blocks of a
peak, which torch's MemTracker does not report (150-250 ms per size, the same peaks). If a model cannot be traced that way, the
torch CPU profiler's allocator peak at a few tiny batches gives a line. Both are shapes, not answers: fragmentation, libraries and
the allocator's history come from real probes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.schema import Mode
from batchcal.measure.inside.blocks import curve_of
from batchcal.workload.model.fake_step import LiveBlocks, TraceTimedOut, make_fake, run_step
from batchcal.workload.step import map_tensors
from batchcal.workload.task import Task

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

PROFILED_BATCHES: Final = (2, 4, 8, 16)
SIZE_LIMIT_S: Final = 2.0
"""A size that takes longer than this under FakeTensor (a 512-step GRU takes 10 s) ends the curve."""
SHARE_OF_FIRST_SIZE: Final = 0.5
"""Share of the time limit after which the first size is given up: a curve needs two sizes."""

BatchOf = Callable[[int], object]
"""size -> the worst-case batch of that size."""


class FakeTrace:
    """Runs a task's step without memory. The task cannot be used afterwards: its parameters become fake."""

    def __init__(
        self,
        task: Task,
        batch_of: BatchOf,
        *,
        limit_s: float,
        fake: FakeTensorMode | None = None,
        slow_s: float | None = None,
    ) -> None:
        """Args:
        limit_s: no further size is traced after this many seconds. Without `slow_s`, a size that is being traced is given up.
        fake: the mode in which parameters of the task are already fake, if they are.
        slow_s: a size that takes longer ends the curve. None: SIZE_LIMIT_S, and less for the first size.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._task = task
        self._batch_of = batch_of
        self._fake = fake or FakeTensorMode(allow_non_fake_inputs=True)
        self._slow_s = SIZE_LIMIT_S if slow_s is None else slow_s
        self._first_limit_s = limit_s * SHARE_OF_FIRST_SIZE if slow_s is None else math.inf
        self._end_s = time.monotonic() + limit_s
        self._last_s = self._end_s if slow_s is None else math.inf
        self._slow = False
        self._refused = False
        """True if a size failed after others were traced. The curve ends there."""
        self._inputs: list[torch.Tensor] = []
        self.peaks: dict[Mode, dict[int, tuple[int, ...]]] = {"train": {}, "eval": {}}
        """Sizes in bytes of the blocks that live at once beyond parameters, optimizer state and batch, by mode and batch size."""
        make_fake(task.model, self._fake)

    def trace(self, sizes: Sequence[int]) -> None:
        """Add `sizes` to the curves, one after another, while there is time."""
        for size in sizes:
            start_s = time.monotonic()
            if size in self.peaks["train"] or start_s > self._end_s or self._slow or self._refused:
                continue
            try:
                peaks = self._peaks(size)
            except TraceTimedOut:
                self._slow = True
                continue
            except Exception:
                if not self.peaks["train"]:
                    raise
                self._refused = True
                continue
            for mode, peak in peaks.items():
                self.peaks[mode][size] = peak
            self._slow = time.monotonic() - start_s > self._slow_s

    def _peaks(self, size: int) -> dict[Mode, tuple[int, ...]]:
        is_first = not self.peaks["train"]
        until_s = time.monotonic() + self._first_limit_s if is_first else self._last_s
        self._inputs = []
        batch = map_tensors(self._batch_of(size), self._faked)
        peaks: dict[Mode, tuple[int, ...]] = {}
        for mode in self.peaks:
            self._task.model.train(mode == "train")
            blocks = LiveBlocks(until_s=until_s)
            blocks.ignore([*self._task.model.parameters(), *self._task.model.buffers(), *self._inputs])
            with self._fake, blocks:
                run_step(self._task, batch, mode)
                self._task.model.zero_grad(set_to_none=True)
            peaks[mode] = blocks.peak
        return peaks

    def _faked(self, tensor: torch.Tensor) -> torch.Tensor:
        fake = self._fake.from_tensor(tensor)
        self._inputs.append(fake)
        return fake

    def shapes(self) -> dict[Mode, tuple[ShapePoint, ...]]:
        """Return the usable curves, by mode."""
        curves: dict[Mode, tuple[ShapePoint, ...]] = {}
        for mode, peaks in self.peaks.items():
            points = curve_of(peaks)
            if self._refused and len(points) == 1:
                points = line(points[0].bytes / points[0].batch)  # through the origin, since no other size runs
            if usable(points):
                curves[mode] = points
        return curves


def profiled_curve(
    task: Task,
    batch_of: BatchOf,
    modes: Sequence[Mode],
    *,
    ceiling: int,
    sizes: Sequence[int] = PROFILED_BATCHES,
    room_bytes: float = math.inf,
) -> dict[Mode, tuple[ShapePoint, ...]]:
    """Return the curves by running tiny batches under the profiler, which does not depend on malloc's history.

    Ends before a batch that is expected to take more than `room_bytes`. The first one was already run in the warm-up.
    """
    curves: dict[Mode, list[ShapePoint]] = {mode: [] for mode in modes}
    for size in [size for size in sizes if size <= ceiling] or [ceiling]:
        if any(points and points[-1].bytes * size / points[-1].batch > room_bytes for points in curves.values()):
            break
        batch = batch_of(size)
        try:
            for mode in modes:
                task.model.train(mode == "train")
                peak = _allocator_peak(partial(run_step, task, batch, mode))
                curves[mode].append(ShapePoint(batch=size, bytes=float(peak)))
                task.model.zero_grad(set_to_none=True)
        except Exception:
            if not all(curves.values()):
                raise
            break  # a size that the task refuses ends the curve, not the task
    # If only one batch had room: a line through the origin.
    extended = {mode: line(points[0].bytes / points[0].batch) if len(points) == 1 else points for mode, points in curves.items()}
    return {mode: tuple(points) for mode, points in extended.items() if usable(points)}


def usable(points: Sequence[ShapePoint]) -> bool:
    """Return True if there are two points or more, and they grow."""
    return len(points) > 1 and points[-1].bytes > points[0].bytes


def line(bytes_per_sample: float) -> tuple[ShapePoint, ...]:
    """Return the shape of last resort: `bytes_per_sample` for each sample."""
    return (ShapePoint(batch=1, bytes=bytes_per_sample), ShapePoint(batch=2, bytes=2 * bytes_per_sample))


def _allocator_peak(step: Callable[[], None]) -> int:
    """Return the most bytes above the start that the CPU allocator had allocated at once while `step` ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = getattr(profiler.profiler, "kineto_results", None)
    if results is None:
        return 0
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak
