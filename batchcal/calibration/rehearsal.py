"""What whole plans did when they were run: which is fastest, what each knob brings, whether the plan stayed in its budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.calibration.speed import ALIKE, NotNegative, Positive
from batchcal.core.values import Record
from batchcal.guard.outcome import Fits, Outcome
from batchcal.values.setup import Count, Setup

Left = Literal["", "slower", "behind", "failed", "pruned", "no-time"]


class Finalist(Record):
    """Threads and workers that a training may use."""

    intra_op_threads: Annotated[int, Field(ge=1, le=2**20)]
    num_workers: Annotated[int, Field(ge=0, le=1024)]
    prefetch_factor: int | None
    multiprocessing_context: Literal["fork", "forkserver", "spawn"] | None = None
    """How its workers are started. None: as the platform does by itself."""
    bound_samples_per_s: Positive
    """What conservation of work allows it, by what fetching and the rest of a step took alone. Without workers: as timed."""
    samples_per_s: Positive | None = None
    """Of whole optimizer steps where it raced others, else of the lap of threads. None: it was not run, or could not be."""
    rounds: int = 0
    left: Left = ""
    """`pruned`: even its bound is no gain worth having; `no-time`: none was left to run it. The others as in every race."""
    why: str = ""


class Finals(Record):
    """The race of threads and DataLoader workers, under one policy at one micro-batch."""

    device: str
    allocator: str
    micro_batch: Count
    finalists: Annotated[tuple[Finalist, ...], Field(min_length=1)]
    """The chosen one first, then the fastest."""
    settled: bool
    """False: time ended before a further round could not have changed the winner."""

    @property
    def winner(self) -> Finalist:
        return self.finalists[0]

    @property
    def limit_samples_per_s(self) -> float:
        """What conservation of work allows at most, whatever the workers and threads."""
        return max(finalist.bound_samples_per_s for finalist in self.finalists)


class SizeTime(Record):
    """A micro-batch in the race of sizes."""

    micro_batch: Annotated[int, Field(ge=1, le=2**31)]
    """The largest of a step; the effective batch is divided evenly into parts no larger."""
    samples_per_s: Positive | None
    """Of whole optimizer steps. None: it was not run, or could not be, as `why` says."""
    rounds: int
    why: str = ""


class SizeRace(Record):
    """Micro-batches that were fast in a lap, and the undivided one, as whole optimizer steps of one effective batch."""

    device: str
    allocator: str
    effective_batch: Count
    sizes: Annotated[tuple[SizeTime, ...], Field(min_length=1)]
    """By rising size."""
    settled: bool

    def fastest(self, effective_batch: int) -> int | None:
        """The fastest of at most `effective_batch` samples, of those that are as fast the smallest; None: none was run."""
        rates = {
            one.micro_batch: one.samples_per_s
            for one in self.sizes
            if one.samples_per_s is not None and one.micro_batch <= effective_batch
        }
        best = max(rates.values(), default=0.0)
        return min((size for size, rate in rates.items() if rate * ALIKE >= best), default=None)


class Rehearsal(Record):
    """A plan that was run whole: groups of the largest samples, groups as they come, evaluations."""

    settings: Setup
    micro_batches_run: Count
    """Of each optimizer step: fewer than the plan has where time was short. From the second on memory stands still."""
    outcome: Outcome
    """`Fits.samples_per_s` is that of whole optimizer steps, in the mean; `step_s` seconds of one."""
    evaluating: bool
    """Whether it was an evaluation that needed too much: training before it had stayed within the budget."""
    wait_share: NotNegative | None
    """Of a step: waiting for the batch. None: it did not fit."""
    eval_samples_per_s: Positive | None
    eval_samples_per_s_at_micro_batch: Positive | None
    """What evaluation would do at training's micro-batch; None: that is the same size, or nothing was evaluated."""
    wall_s: NotNegative
    last_group_error: str = ""
    """How the last, smaller group of an epoch failed: an error of the task's own code. Empty: it ran, or there is none."""

    @property
    def fits(self) -> bool:
        return isinstance(self.outcome, Fits)


class TurnedBack(Record):
    """The chosen plan with one of its knobs as PyTorch has it."""

    knob: Literal["allocator", "micro_batch", "num_workers", "intra_op_threads", "activation_checkpointing"]
    chosen: str
    usual: str
    samples_per_s: Positive | None
    """None: it could not be run, as `why` says."""
    peak_bytes: int | None = None
    """Held on the device at the peak of its training steps, where the knob is one of memory."""
    why: str = ""


class Attribution(Record):
    """What the chosen plan gains over PyTorch's defaults at the same effective batch, knob by knob."""

    effective_batch: Count
    samples_per_s: Positive
    """Of the chosen plan, in the same rounds."""
    peak_bytes: int | None = None
    """The same of the chosen plan's memory."""
    usual_samples_per_s: Positive | None
    """With every knob turned back. None: it could not be run, as `why` says."""
    knobs: tuple[TurnedBack, ...]
    """Those in which the two differ."""
    rounds: int
    why: str = ""

    @property
    def gain(self) -> float | None:
        """Chosen over usual; None: the usual could not be run."""
        return None if self.usual_samples_per_s is None else self.samples_per_s / self.usual_samples_per_s
