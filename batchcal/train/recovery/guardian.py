"""What is done when memory runs out in a forward or backward pass: undone, made room for, and run again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol

import torch

from batchcal.calibration.size_rule import SizeRule
from batchcal.core.clock import Clock
from batchcal.core.errors import NothingFits
from batchcal.core.units import count_of
from batchcal.guard.memory_errors import memory_error
from batchcal.guard.release import trim
from batchcal.guard.report import Raised, describe, let_go
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, Share
from batchcal.train.recovery.parts import Part, Splitter
from batchcal.train.recovery.undo import Before, Undo
from batchcal.values.settings import WhenSplit
from batchcal.workload.normalization import batch_normalizations
from batchcal.workload.task import Task

COLLECT_EVERY_S: Final = 10.0
Where = Literal["preflight", "forward", "backward"]
Action = Literal["retry", "split"]


@dataclass(frozen=True)
class Recovery:
    """What was done about one shortage."""

    where: Where
    samples: int
    """Of the micro-batch that did not fit."""
    action: Action
    lost_s: float
    """Spent on the pass that failed and on making room."""
    why: str


@dataclass(frozen=True)
class _Failure:
    where: Where
    why: str


class Outlook(Protocol):
    """What is known of the memory that there is."""

    def fits(self, micro_batch: MicroBatch) -> bool:
        """Whether it is expected to fit now."""
        ...

    def near_limit(self) -> bool:
        """Whether an error that may mean memory does mean it."""
        ...


class OOMGuardian:
    """Runs micro-batches one by one; one that does not fit is run again, and in halves where it must be.

    The pass that failed is undone first: its gradients, the random numbers it drew, the buffers it changed. Then room is made,
    and the same micro-batch is run once more where that is expected to fit now, which gives the very result that it would have
    had. Else it is cut in halves, which gives the same gradients but for rounding.

    Not the same are BatchNorm, which sees other batches, and dropout, which draws other masks of the same kind. With BatchNorm a
    micro-batch is cut only where `batchnorm` is "split".

    Args:
        tell: called for every recovery.
        undivided: why no batch of this task may be divided; empty: it may. See `Plan.undivided`.
        size_rule: which batch sizes the task takes; None: every size.
    """

    def __init__(
        self,
        task: Task,
        device: torch.device,
        outlook: Outlook,
        *,
        clock: Clock,
        tell: Callable[[Recovery], None],
        batchnorm: WhenSplit = "stop",
        undivided: str = "",
        size_rule: SizeRule | None = None,
    ) -> None:
        self._size_rule = size_rule
        self._undivided = undivided
        self._device, self._outlook, self._clock, self._tell = device, outlook, clock, tell
        self._splitter = Splitter(task.train_data, task.collate_fn, size_rule)
        self._undo = Undo(task.model, device)
        self._cuttable = not undivided and (batchnorm == "split" or not batch_normalizations(task.model))
        self.safe: int | None = None
        """The largest micro-batch that is known to run since one did not fit. None: none failed."""
        self._beginning: Before | None = None
        self._collected_at = float("-inf")

    def begin_group(self) -> None:
        """What comes belongs to the next group, and is loaded from here on."""
        self._beginning = self._undo.beginning()

    def rewind(self) -> None:
        """Random numbers and buffers as they were before the group, for a checkpoint from which it is run again."""
        if self._beginning is not None:
            self._undo.restore(self._beginning)

    def run(self, passes: Passes, micro_batch: MicroBatch) -> Share:
        """Forward and backward over `micro_batch`, whatever it takes.

        Raises:
            NothingFits: it does not fit and cannot be made smaller. Nothing of its pass is left.
        """
        began = self._clock.monotonic()
        if not self._outlook.fits(micro_batch):
            self.make_room(thorough=True)
            if not self._outlook.fits(micro_batch):
                refused = _Failure("preflight", "it is predicted to need more than there is")
                halves = self.halves(micro_batch)
                # What cannot be cut is tried all the same: a prediction is no fact.
                if halves is not None:
                    return self._in_halves(passes, micro_batch, halves, refused, began)
        result = self._tried(passes, micro_batch)
        if isinstance(result, Share):
            return result
        self.make_room()
        if self._outlook.fits(micro_batch):
            self._tell(Recovery(result.where, micro_batch.samples, "retry", self._clock.monotonic() - began, result.why))
            again = self._tried(passes, micro_batch)
            if isinstance(again, Share):
                return again
            result = again
        self.make_room(thorough=True)
        halves = self.halves(micro_batch)
        if halves is None:
            raise self._unfit(micro_batch, result)
        return self._in_halves(passes, micro_batch, halves, result, began)

    def make_room(self, *, thorough: bool = False) -> None:
        """What allocators keep without need goes back to the system. With `thorough` unreachable objects go too, now and then: to
        look for them takes 0.1 s."""
        now = self._clock.monotonic()
        if thorough and now - self._collected_at >= COLLECT_EVERY_S:
            gc.collect()
            self._collected_at = self._clock.monotonic()
        trim()
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _tried(self, passes: Passes, micro_batch: MicroBatch) -> Share | _Failure:
        """Raises what is no lack of memory, as it is."""
        before = None
        try:
            before = self._undo.before()
            return passes.run(micro_batch)
        except Exception as error:
            raised = describe(error, "measure")
            if not self._is_memory(raised):
                raise
            where: Where = "backward" if _in_backward(error.__traceback__) else "forward"
            # The frames of the pass hold its activations.
            let_go(error)
        passes.undo()
        lost = "" if before is None else self._undo.restore(before)
        if lost:
            raise NothingFits(
                f"memory ran out in the {where} pass: {raised.headline}",
                known=f"{lost} was changed by it and cannot be put back: run again, it would count twice",
                try_="a larger --margin",
            )
        return _Failure(where, raised.headline)

    def _is_memory(self, raised: Raised) -> bool:
        kind = memory_error(raised)
        return kind in ("host", "accelerator") or (kind == "suspect" and self._outlook.near_limit())

    def halves(self, micro_batch: MicroBatch) -> tuple[Part, Part] | None:
        """None: it cannot be cut, or must not be."""
        return self._splitter.halves(micro_batch) if self._cuttable else None

    def _in_halves(
        self, passes: Passes, micro_batch: MicroBatch, halves: tuple[Part, Part], failure: _Failure, began: float
    ) -> Share:
        larger = self._splitter.middle(micro_batch.samples)
        self.safe = larger if self.safe is None else min(self.safe, larger)
        self._tell(Recovery(failure.where, micro_batch.samples, "split", self._clock.monotonic() - began, failure.why))
        first, second = halves
        # The whole is of no use any more; its halves may be views of it, which keep it as long as they need it.
        del micro_batch
        done = self.run(passes, first())
        del first
        return done + self.run(passes, second())

    def _unfit(self, micro_batch: MicroBatch, failure: _Failure) -> NothingFits:
        what = f"memory ran out in the {failure.where} pass over {count_of(micro_batch.samples, 'sample')}: {failure.why}"
        if micro_batch.samples > 1 and self._undivided:
            return NothingFits(
                what,
                known=f"the batch must not be divided: {self._undivided}",
                try_="--accept-inexact where that is accepted, a smaller --effective-batch, or a larger --margin",
            )
        if micro_batch.samples > 1 and self._size_rule is not None and not self._splitter.middle(micro_batch.samples):
            return NothingFits(
                what,
                known=f"the task {self._size_rule.text}: it does not take halves of this batch",
                try_="a larger --margin, then the same command with --resume",
            )
        if micro_batch.samples > 1 and not self._cuttable:
            return NothingFits(
                what,
                known="the model has BatchNorm: cut in two, the batch would be normalized otherwise and train otherwise",
                try_="--on-oom split where that is accepted, or a larger --margin",
            )
        if micro_batch.samples > 1:
            return NothingFits(
                what, known="the batch cannot be cut: it is no nest of tensors by sample, and a stream cannot be read again"
            )
        index = "" if micro_batch.indices is None else f" (index {micro_batch.indices[0]})"
        return NothingFits(what, known=f"that is one sample{index}: nothing smaller can be run", try_="a higher memory limit")


def _in_backward(trace: TracebackType | None) -> bool:
    """Whether autograd was at work."""
    while trace is not None:
        if trace.tb_frame.f_code is _BACKWARD:
            return True
        trace = trace.tb_next
    return False


_BACKWARD: Final = torch.Tensor.backward.__code__
