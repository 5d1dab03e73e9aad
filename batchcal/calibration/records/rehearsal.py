"""Results of complete runs of plans: the fastest, the gain from each knob, and the fit within the budget."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from batchcal.calibration.records.speed import ALIKE, NotNegative, Positive
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
    """Start method of the workers. None: the default of the platform."""
    bound_samples_per_s: Positive
    """Upper bound by conservation of work, from the times of fetching alone and of the rest alone. Without workers: as timed."""
    samples_per_s: Positive | None = None
    """Speed over complete optimizer steps in a race, else in the timing of threads. None: it was not run, or could not be run."""
    rounds: int = 0
    left: Left = ""
    """`pruned`: even its bound is not a sufficient gain; `no-time`: no time was left to run it; the others as in every race."""
    why: str = ""


class Finals(Record):
    """The race of threads and DataLoader workers, under one policy at one micro-batch."""

    device: str
    allocator: str
    micro_batch: Count
    finalists: Annotated[tuple[Finalist, ...], Field(min_length=1)]
    """The chosen finalist first, then the others, fastest first."""
    settled: bool
    """False: the time ran out while a further round could still have changed the winner."""

    @property
    def winner(self) -> Finalist:
        return self.finalists[0]

    @property
    def limit_samples_per_s(self) -> float:
        """Upper bound by conservation of work, for any number of workers and threads."""
        return max(finalist.bound_samples_per_s for finalist in self.finalists)


class SizeTime(Record):
    """A micro-batch in the race of sizes."""

    micro_batch: Annotated[int, Field(ge=1, le=2**31)]
    """Largest micro-batch of a step. The effective batch is divided evenly into parts of at most this size."""
    samples_per_s: Positive | None
    """Speed over complete optimizer steps. None: it was not run, or could not be run, see `why`."""
    rounds: int
    why: str = ""


class SizeRace(Record):
    """Race of micro-batches that were fast in a timing and of the undivided one, in complete steps of one effective batch."""

    device: str
    allocator: str
    effective_batch: Count
    sizes: Annotated[tuple[SizeTime, ...], Field(min_length=1)]
    """In ascending order of size."""
    settled: bool

    def fastest(self, effective_batch: int) -> int | None:
        """Return the fastest size of at most `effective_batch` samples, the smallest of equally fast ones. None: none was run."""
        rates = {
            timing.micro_batch: timing.samples_per_s
            for timing in self.sizes
            if timing.samples_per_s is not None and timing.micro_batch <= effective_batch
        }
        best = max(rates.values(), default=0.0)
        return min((size for size, rate in rates.items() if rate * ALIKE >= best), default=None)


class Rehearsal(Record):
    """A complete run of a plan: groups of the largest samples, groups in training order, evaluations."""

    settings: Setup
    micro_batches_run: Count
    """Micro-batches run per optimizer step. If time was short, fewer than in the plan: memory does not grow after the second."""
    outcome: Outcome
    """`Fits.samples_per_s` is the mean over complete optimizer steps, `step_s` the seconds of one step."""
    evaluating: bool
    """True if an evaluation needed too much memory and the training before it had stayed within the budget."""
    wait_share: NotNegative | None
    """Share of a step that waits for the batch. None: the plan did not fit."""
    eval_samples_per_s: Positive | None
    eval_samples_per_s_at_micro_batch: Positive | None
    """Speed of evaluation at training's micro-batch. None: that is the same size, or nothing was evaluated."""
    wall_s: NotNegative
    last_group_error: str = ""
    """Error of the task's own code in the last, smaller group of an epoch. Empty: the group ran, or there is none."""

    @property
    def fits(self) -> bool:
        return isinstance(self.outcome, Fits)


NO_TIME: Final = "no time was left"
"""Reason for a part that a longer time limit would measure."""


class TurnedBack(Record):
    """The chosen plan with one knob at PyTorch's default."""

    knob: Literal["allocator", "micro_batch", "num_workers", "intra_op_threads", "activation_checkpointing"]
    chosen: str
    usual: str
    samples_per_s: Positive | None
    """None: it could not be run, see `why`. If that is empty: it was not requested."""
    peak_bytes: int | None = None
    """Peak memory on the device in its training steps, for a knob that concerns memory."""
    why: str = ""


class Attribution(Record):
    """Gain of the chosen plan over PyTorch's defaults at the same effective batch, by knob."""

    effective_batch: Count
    samples_per_s: Positive
    """Speed of the chosen plan, in the same rounds."""
    peak_bytes: int | None = None
    """Peak memory of the chosen plan on the device, for a knob that concerns memory."""
    usual_samples_per_s: Positive | None
    """Speed with every knob at PyTorch's default. None: it could not be run, see `why`."""
    knobs: tuple[TurnedBack, ...]
    """Knobs that differ between the two."""
    rounds: int
    why: str = ""

    @property
    def is_by_knob(self) -> bool:
        """True if the part of each knob was measured as far as it can be, in more than one round. False: only all of them
        together, or time ended."""
        measured = all(knob.samples_per_s is not None or knob.why not in ("", NO_TIME) for knob in self.knobs)
        return not self.knobs or (self.rounds > 1 and measured)

    @property
    def gain(self) -> float | None:
        """Speed of the chosen plan divided by that of the defaults. None: the defaults could not be run."""
        return None if self.usual_samples_per_s is None else self.samples_per_s / self.usual_samples_per_s
