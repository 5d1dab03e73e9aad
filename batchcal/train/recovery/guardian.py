"""Recovery from a lack of memory in a forward or backward pass: undo it, make room, and run it again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol

import torch

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.clock import Clock
from batchcal.core.errors import NothingFits
from batchcal.core.units import count_of
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.release import trim
from batchcal.guard.children.report import Raised, describe, free_frames
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, SampleShare
from batchcal.train.recovery.splitter import Part, Splitter
from batchcal.train.recovery.undo import Before, Undo
from batchcal.values.settings import WhenSplit
from batchcal.workload.model.normalization import batch_normalizations
from batchcal.workload.task import Task

COLLECT_EVERY_S: Final = 10.0
PassPhase = Literal["preflight", "forward", "backward"]
Action = Literal["retry", "split"]


@dataclass(frozen=True)
class Recovery:
    """Reaction to one shortage of memory."""

    phase: PassPhase
    samples: int
    """Number of samples of the micro-batch that did not fit."""
    action: Action
    lost_s: float
    """Time spent on the failed pass and on making room, seconds."""
    why: str


@dataclass(frozen=True)
class _Failure:
    phase: PassPhase
    why: str


class Outlook(Protocol):
    """Knowledge about the available memory."""

    def fits(self, micro_batch: MicroBatch) -> bool:
        """Return True if `micro_batch` is expected to fit now."""
        ...

    def near_limit(self) -> bool:
        """Return True if an ambiguous error is due to memory."""
        ...


class OOMGuardian:
    """Runner of micro-batches, one after another. A micro-batch that does not fit is run again, in halves if necessary.

    First, the failed pass is undone: its gradients, its random numbers, and its changes of buffers. Then room is made. If the
    same micro-batch is now expected to fit, it is run again, with exactly the result of an undisturbed pass. Otherwise it is cut
    in halves, which gives the same gradients except for rounding.

    Exceptions in halves are BatchNorm, which gets other batches, and dropout, which draws other masks of the same kind. With
    BatchNorm, a micro-batch is cut only if `batchnorm` is "split".

    Args:
        report: called for each recovery.
        undivided: reason why no batch of this task may be divided. Empty: it may. See `Plan.undivided`.
        size_rule: batch sizes that the task accepts. None: every size.
    """

    def __init__(
        self,
        task: Task,
        device: torch.device,
        outlook: Outlook,
        *,
        clock: Clock,
        report: Callable[[Recovery], None],
        batchnorm: WhenSplit = "stop",
        undivided: str = "",
        size_rule: SizeRule | None = None,
    ) -> None:
        self._size_rule = size_rule
        self._undivided = undivided
        self._device, self._outlook, self._clock, self._report = device, outlook, clock, report
        self._splitter = Splitter(task.train_data, task.collate_fn, size_rule)
        self._undo = Undo(task.model, device)
        self._cuttable = not undivided and (batchnorm == "split" or not batch_normalizations(task.model))
        self.safe: int | None = None
        """Largest micro-batch that is known to run after one did not fit. None: none failed."""
        self._beginning: Before | None = None
        self._collected_at = float("-inf")

    def begin_group(self) -> None:
        """Begin the next group. Its batches are loaded from here on."""
        self._beginning = self._undo.beginning()

    def rewind(self) -> None:
        """Restore random numbers and buffers as before the group, for a checkpoint from which the group is run again."""
        if self._beginning is not None:
            self._undo.restore(self._beginning)

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
        """Run forward and backward over `micro_batch`, with recovery if necessary.

        Raises:
            NothingFits: it does not fit and cannot be made smaller. Its pass has no effect.
        """
        start_s = self._clock.monotonic()
        if not self._outlook.fits(micro_batch):
            self.make_room(thorough=True)
            if not self._outlook.fits(micro_batch):
                refused = _Failure("preflight", "the predicted memory exceeds the available memory")
                halves = self.halves(micro_batch)
                # If it cannot be cut, it is tried anyway: a prediction may be wrong.
                if halves is not None:
                    return self._in_halves(passes, micro_batch, halves, refused, start_s)
        result = self._tried(passes, micro_batch)
        if isinstance(result, SampleShare):
            return result
        self.make_room()
        if self._outlook.fits(micro_batch):
            self._report(Recovery(result.phase, micro_batch.samples, "retry", self._clock.monotonic() - start_s, result.why))
            second = self._tried(passes, micro_batch)
            if isinstance(second, SampleShare):
                return second
            result = second
        self.make_room(thorough=True)
        halves = self.halves(micro_batch)
        if halves is None:
            raise self._unfit(micro_batch, result)
        return self._in_halves(passes, micro_batch, halves, result, start_s)

    def make_room(self, *, thorough: bool = False) -> None:
        """Return unused memory of the allocators to the system. With `thorough`, also free unreachable objects from time to time:
        the search for them takes 0.1 s."""
        now = self._clock.monotonic()
        if thorough and now - self._collected_at >= COLLECT_EVERY_S:
            gc.collect()
            self._collected_at = self._clock.monotonic()
        trim()
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _tried(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare | _Failure:
        """Run one pass. Errors that are not due to memory propagate unchanged."""
        before = None
        try:
            before = self._undo.before()
            return passes.run(micro_batch)
        except Exception as error:
            raised = describe(error, "measure")
            if not self._is_memory(raised):
                raise
            phase: PassPhase = "backward" if _in_backward(error.__traceback__) else "forward"
            # The frames of the pass hold its activations.
            free_frames(error)
        passes.undo()
        lost = "" if before is None else self._undo.restore(before)
        if lost:
            raise NothingFits(
                f"memory ran out in the {phase} pass: {raised.headline}",
                known=f"the pass changed {lost}, which cannot be restored: a second run would change it twice",
                try_="a larger --margin",
            )
        return _Failure(phase, raised.headline)

    def _is_memory(self, raised: Raised) -> bool:
        kind = memory_error(raised)
        return kind in ("host", "accelerator") or (kind == "suspect" and self._outlook.near_limit())

    def halves(self, micro_batch: MicroBatch) -> tuple[Part, Part] | None:
        """Return both halves. None: the micro-batch cannot or must not be cut."""
        return self._splitter.halves(micro_batch) if self._cuttable else None

    def _in_halves(
        self, passes: Passes, micro_batch: MicroBatch, halves: tuple[Part, Part], failure: _Failure, start_s: float
    ) -> SampleShare:
        larger = self._splitter.middle(micro_batch.samples)
        self.safe = larger if self.safe is None else min(self.safe, larger)
        self._report(Recovery(failure.phase, micro_batch.samples, "split", self._clock.monotonic() - start_s, failure.why))
        first, second = halves
        # The complete micro-batch is no longer needed. Halves that are views of it keep it alive as long as necessary.
        del micro_batch
        done = self.run(passes, first())
        del first
        return done + self.run(passes, second())

    def _unfit(self, micro_batch: MicroBatch, failure: _Failure) -> NothingFits:
        message = f"memory ran out in the {failure.phase} pass over {count_of(micro_batch.samples, 'sample')}: {failure.why}"
        if micro_batch.samples > 1 and self._undivided:
            return NothingFits(
                message,
                known=f"the batch must not be divided: {self._undivided}",
                try_="--accept-inexact to accept the mismatch, a smaller --effective-batch, or a larger --margin",
            )
        if micro_batch.samples > 1 and self._size_rule is not None and not self._splitter.middle(micro_batch.samples):
            return NothingFits(
                message,
                known=f"the task {self._size_rule.text}: it does not accept halves of this batch",
                try_="a larger --margin, then the same command with --resume",
            )
        if micro_batch.samples > 1 and not self._cuttable:
            return NothingFits(
                message,
                known="the model has BatchNorm: halves of the batch would be normalized differently and train differently",
                try_="--on-oom split to accept that, or a larger --margin",
            )
        if micro_batch.samples > 1:
            return NothingFits(
                message,
                known="the batch cannot be cut: not every tensor has one row per sample, and a stream cannot be read again",
                try_="a larger --margin",
            )
        index = "" if micro_batch.indices is None else f" (index {micro_batch.indices[0]})"
        return NothingFits(
            message, known=f"the batch is one sample{index}, which cannot be made smaller", try_="a higher memory limit"
        )


def _in_backward(trace: TracebackType | None) -> bool:
    """Return True if autograd was running."""
    while trace is not None:
        if trace.tb_frame.f_code is _BACKWARD:
            return True
        trace = trace.tb_next
    return False


_BACKWARD: Final = torch.Tensor.backward.__code__
