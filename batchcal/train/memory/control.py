"""Control of a training's memory. For the loop, it is one guard of the groups."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.clock import Clock
from batchcal.core.errors import NothingFits
from batchcal.core.progress import Progress
from batchcal.core.units import format_bytes
from batchcal.guard.children.release import trim
from batchcal.machine.peak_meter import PeakMeter
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, SampleShare
from batchcal.train.memory.available import AvailableMemory
from batchcal.train.memory.composition import Composition
from batchcal.train.memory.monitor import MemoryMonitor, reserve_bytes
from batchcal.train.memory.predictor import MemoryPredictor
from batchcal.train.recovery.guardian import OOMGuardian, Recovery
from batchcal.train.sizes.controller import BatchSizeController, Change, ControlSettings
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler
from batchcal.values.settings import WhenSplit
from batchcal.values.training_events import Recovered, Resized, TrainingEvent
from batchcal.workload.data.sample_size import nest_bytes
from batchcal.workload.model.not_finite import require_finite
from batchcal.workload.model.parameters import trained_parameters
from batchcal.workload.step import move
from batchcal.workload.task import Task

MEASURED_EVERY_S: Final = 1.0
"""Interval of measurements. Measuring a batch and learning from it takes 1.3 ms after a pass, whose data fills the caches."""
CLOSELY: Final = 50
"""Number of batches that are measured one after another, at the beginning and after each change of the size, while sizes may
still grow or a group is not learned yet."""
GREW_BYTES: Final = 1 << 20
"""A peak that exceeds the memory before the batch by this amount is the peak of the batch itself."""
RELEASES_S: Final = 0.5
RELEASES_SHARE: Final = 0.0015
"""Limits of the time for releasing free memory, so that the next peak shows the need of its batch: at once, and of all time."""
RELEASED_EVERY_S: Final = 10.0
"""Interval of releases for a settled group, to check that the group has not changed."""
NEAR: Final = 0.85
"""Share of the limit above which an ambiguous error counts as a memory error."""


@dataclass
class BatchMemory:
    """Memory of the batches since the last request."""

    predicted_bytes: float = 0.0
    """Prediction for the batch with the highest peak. 0: that memory was already held before, and shows nothing about a batch."""
    peak_bytes: int = 0

    def add(self, predicted_bytes: float, peak_bytes: int, *, own: bool) -> None:
        """`own`: the peak is the peak of the batch itself."""
        if peak_bytes > self.peak_bytes + GREW_BYTES or (own and peak_bytes >= self.peak_bytes):
            self.predicted_bytes = predicted_bytes if own else 0.0
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


class MemoryControl:
    """A `Guard`. It compares the prediction for each micro-batch with the free room. Then it measures, learns and sets the size.

    Args:
        group_of: index of a sample -> its task type, so that predictions are learned for each type.
    """

    def __init__(
        self,
        task: Task,
        device: torch.device,
        *,
        monitor: MemoryMonitor,
        peak: PeakMeter,
        predictor: MemoryPredictor,
        scheduler: GradientAccumulationScheduler,
        settings: ControlSettings,
        clock: Clock,
        progress: Progress[TrainingEvent],
        batchnorm: WhenSplit = "stop",
        undivided: str = "",
        size_rule: SizeRule | None = None,
        group_of: Callable[[int], str] | None = None,
    ) -> None:
        self.predictor, self.scheduler = predictor, scheduler
        self.monitor = monitor
        self.recoveries = 0
        self.size_rule = size_rule
        self._epoch = self._step = 0
        self._controller = BatchSizeController(scheduler, settings)
        self._guardian = OOMGuardian(
            task,
            device,
            self,
            clock=clock,
            report=self._recovered,
            batchnorm=batchnorm,
            undivided=undivided,
            size_rule=size_rule,
        )
        self._peak, self._clock, self._progress, self._group_of = peak, clock, progress, group_of
        self._task, self._device = task, device
        self._state_bytes = sum(
            parameter.numel() * parameter.element_size() for parameter in trained_parameters(task) if parameter.requires_grad
        )
        self._optimizer = task.optimizer
        self._passes: Passes | None = None
        self._memory = BatchMemory()
        self._measured_at = float("-inf")
        self._closely = CLOSELY
        self._start_s = clock.monotonic()
        self._releasing_s = 0.0
        self._released_at = float("-inf")
        self._failed = False
        self._composed: tuple[tuple[int, ...], Composition] | None = None
        self._held_bytes = 0
        """Largest memory that this process held before a successful step of the optimizer."""

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
        """Run the micro-batch, in parts if necessary.

        Raises:
            NothingFits: it does not fit and cannot be made smaller.
            LossIsNoNumber: its loss is NaN or infinite.
        """
        self._passes = passes
        if self.scheduler.by_count and micro_batch.samples > self.scheduler.micro_batch:
            # It was prefetched before the size went down, or it is from a stream, whose sizes cannot be changed.
            halves = self._guardian.halves(micro_batch)
            if halves is not None:
                del micro_batch
                first, second = halves
                return self.run(passes, first()) + self.run(passes, second())
        batch = self.composition(micro_batch)
        share = self._measured(passes, micro_batch, batch) if self._due(batch) else self._guardian.run(passes, micro_batch)
        if not math.isfinite(share.weighted_loss):
            value = share.weighted_loss / share.weight
            require_finite(self._task, move(micro_batch.batch, self._device), micro_batch.samples, value)
        return share

    def _measured(self, passes: Passes, micro_batch: MicroBatch, batch: Composition) -> SampleShare:
        before, released = self._before(batch)
        predicted = self.predictor.predict(batch)
        measuring = self._peak.begin()
        self._failed = False
        share = self._guardian.run(passes, micro_batch)
        if measuring and not self._failed:
            peak = self._peak.end()
            # Blocks that the allocator keeps are part of a peak, but not every batch uses them (measured: 13 % of a peak).
            own = released and peak > before.own_bytes + GREW_BYTES
            self._memory.add(predicted, peak, own=own)
            self._learn(batch, before, peak, own=own)
        self._measured_at = self._clock.monotonic()
        self._closely -= 1
        return share

    def set_position(self, epoch: int, step: int) -> None:
        """Set the position of the training, for events."""
        self._epoch, self._step = epoch, step

    def begin_group(self) -> None:
        """Begin a group. None of it is loaded yet."""
        self._passes = None
        self._guardian.begin_group()

    def evaluated_in_halves(self, samples: int, why: str) -> None:
        """Report a batch of the evaluation that did not fit."""
        self.recoveries += 1
        self._progress.event(
            Recovered(epoch=self._epoch, step=self._step, phase="evaluation", samples=samples, action="split", why=why)
        )

    def prediction_error(self) -> float | None:
        """Median over the groups of `MemoryPredictor.error`. None: nothing was measured."""
        errors = [error for group in self.predictor.groups() if (error := self.predictor.error(group)) is not None]
        return statistics.median(errors) if errors else None

    def before_update(self) -> None:
        """Make room for the optimizer's step, which must not be interrupted in the middle.

        Raises:
            NothingFits: there is too little room. Nothing has changed: a checkpoint of this state is complete.
        """
        # Adam's state is twice as large as the parameters, and made in the first step. Its temporaries are as large as they are.
        need = self._state_bytes * (1 if self._optimizer.state else 3)
        room, own = self.monitor.available(), self.monitor.own_bytes()
        # Where a step went by with as much held as may be held now, the next one needs no more.
        if need <= self._top(room) - own or (self._optimizer.state and self._top(room) >= self._held_bytes):
            self._held_bytes = max(self._held_bytes, own)
            return
        self._guardian.make_room()
        room = self.monitor.read()
        free = self._top(room) - room.own_bytes
        if need > free:
            raise NothingFits(
                f"the optimizer's step may need {format_bytes(need)}, but only {format_bytes(max(0, free))} are free",
                known="the step was not started: a lack of memory in the middle of it would leave only some parameters updated",
                try_="a higher memory limit, then the same command with --resume",
            )

    def in_update(self) -> bool:
        """True if the error came from the optimizer's step, which leaves parameters and state partly updated."""
        return self._passes is not None and self._passes.finished

    def rewind(self) -> None:
        """Restore random numbers and buffers to their state before the failed group."""
        self._guardian.rewind()

    def take_memory(self) -> BatchMemory:
        """Return the memory of the batches since the last call."""
        memory, self._memory = self._memory, BatchMemory()
        return memory

    def composition(self, micro_batch: MicroBatch) -> Composition:
        """Return the input of the prediction."""
        indices = micro_batch.indices
        if indices is not None and self._composed is not None and self._composed[0] is indices:
            return self._composed[1]
        group = "" if self._group_of is None or indices is None else _groups(self._group_of, indices)
        composition = Composition(micro_batch.samples, nest_bytes(micro_batch.batch), group)
        # The composition of a batch is requested before and during its run.
        self._composed = None if indices is None else (indices, composition)
        return composition

    def fits(self, micro_batch: MicroBatch) -> bool:
        """True if it is predicted to fit into the current room."""
        room = self.monitor.available()
        return self.predictor.predict(self.composition(micro_batch)) <= self._top(room) or micro_batch.samples == 1

    def near_limit(self) -> bool:
        """True if this process came near the limit since the last batch began."""
        room = self.monitor.read()
        return room.others_bytes + self._peak.end() >= NEAR * room.limit_bytes

    def _due(self, batch: Composition) -> bool:
        learning = self.scheduler.share < 1 or not self.predictor.settled(batch.group)
        closely = self._controller.in_doubt or (learning and self._closely > 0)
        return closely or self._clock.monotonic() - self._measured_at >= MEASURED_EVERY_S

    def _before(self, batch: Composition) -> tuple[AvailableMemory, bool]:
        """Return the room before the batch. True: the allocator's free blocks, which may hide a batch, were released first."""
        now = self._clock.monotonic()
        wanted = not self.predictor.settled(batch.group) or now - self._released_at >= RELEASED_EVERY_S
        if not wanted or self._releasing_s > RELEASES_S + RELEASES_SHARE * (now - self._start_s):
            return self.monitor.read(), False
        start_s = time.perf_counter()
        trim()
        # Released memory must be touched again, which takes about as long.
        self._releasing_s += 2 * (time.perf_counter() - start_s)
        self._released_at = now
        return self.monitor.read(), True

    def _learn(self, batch: Composition, before: AvailableMemory, peak: int, *, own: bool) -> None:
        self.predictor.observe(batch, peak, at_most=not own)
        limit = before.limit_bytes
        each, now = batch.padded_bytes / batch.samples, self.scheduler.micro_batch

        def share_at(micro_batch: int) -> float:
            # Batches that are made by cost have other numbers of samples; they grow by the same factor.
            samples = max(micro_batch, round(batch.samples * micro_batch / now))
            larger = Composition(samples, round(each * samples), batch.group)
            return (before.others_bytes + self.predictor.predict(larger)) / limit

        change = self._controller.after((before.others_bytes + peak) / limit, share_at)
        if change is not None:
            self._report_change(change)

    def _report_change(self, change: Change) -> None:
        self._closely = CLOSELY
        if change.now < change.was:
            # The allocator still holds the memory of the larger size, which would count as need.
            trim()
        self._progress.event(Resized(epoch=self._epoch, step=self._step, was=change.was, now=change.now, why=change.why))

    def _recovered(self, recovery: Recovery) -> None:
        self._failed = True
        self.recoveries += 1
        safe = self._guardian.safe
        self._progress.event(
            Recovered(
                epoch=self._epoch,
                step=self._step,
                phase=recovery.phase,
                samples=recovery.samples,
                action=recovery.action,
                safe=safe,
                lost_s=recovery.lost_s,
                why=recovery.why,
            )
        )
        # The number of samples does not describe batches that are made by cost: all of their sizes are halved.
        by_count = self.scheduler.by_count
        if recovery.action == "split" and safe is not None and (not by_count or safe < self.scheduler.micro_batch):
            change = self._controller.ran_short(
                f"memory ran out with a micro-batch of {recovery.samples}", safe=safe if by_count else None
            )
            if change is not None:
                self._report_change(change)

    def _top(self, room: AvailableMemory) -> int:
        """Bytes that this process may hold."""
        return room.limit_bytes - room.others_bytes - reserve_bytes(room.limit_bytes)


def _groups(group_of: Callable[[int], str], indices: Sequence[int]) -> str:
    """`T1+T3`: all that are in the batch."""
    return "+".join(sorted({group_of(index) for index in indices}))
