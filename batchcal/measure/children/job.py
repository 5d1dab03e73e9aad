"""Arguments, answers and functions of the children that examine a task, probe a size and try sizes.

Torch is imported only when a function is called.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from batchcal.calibration.schema import OFF, Mode
from batchcal.calibration.workers import Start
from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.probe import Examination
from batchcal.workload.in_flight import PREFETCH_FACTOR
from batchcal.workload.reference import TaskReference

Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
"""What a child may say it held: nobody has a pebibyte."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


SMALLEST: Final = 2
"""The usual tiny batch."""
Curve = Literal["traced", "profiled", "assumed"]
"""Source of the static curve, each where the one before ended the child: the model without memory, the profiler, the bytes of a
batch."""


class Setting(Frozen):
    """What is the same for every child of a calibration on one device."""

    reference: TaskReference
    device: str
    seed: int
    activation_checkpointing: str = OFF
    intra_op_threads: int
    interop_threads: int = 1
    workers: int
    start: Start | None = None
    """How workers are started. None: as the platform does."""
    prefetch_factor: int = PREFETCH_FACTOR
    lost_blocks: int | None = None
    """Blocks of a step that are lost to handles of workers' batches, see `heap.handles`. None: unknown."""
    smallest_batch: int
    """Batch of the warm-up: two samples, since BatchNorm refuses one, or the smallest that the task takes; one where two do not
    fit."""
    multiple_of: int = 1
    """Of every batch of a static curve."""
    one_size: bool = False
    """A process runs batches of one size only, in the warm-up too."""
    accelerator_free_bytes: int | None = None
    """Free on the device before any of our contexts; with it a context's own share is known."""

    def warm_up_size(self, *sizes: int) -> int:
        """The tiny size of a process that runs `sizes` then."""
        if self.one_size:
            return sizes[0]
        # Two samples may not fit where one does; a larger size is the smallest that the task takes.
        return min(self.smallest_batch, *sizes) if self.smallest_batch <= SMALLEST else self.smallest_batch


class ExamineArguments(Frozen):
    setting: Setting
    budget_bytes: int
    """Only to choose the sizes of the static curve."""
    limit_s: float
    curve: Curve = "traced"
    known: Examination | None = None
    """What was found under another policy: then only what depends on the policy is measured."""
    order: tuple[int, ...] | None = None
    """See `ProbeArguments`."""


class ScoutArguments(Frozen):
    setting: Setting
    sizes: tuple[int, ...]
    limit_s: float


class ProbeArguments(Frozen):
    setting: Setting
    batch: int
    mode: Mode
    train_batch: int | None
    samples: int
    least_steps: int
    train_steps: int
    order: tuple[int, ...] | None
    """Indices of the largest samples of the mode's data, largest first, found by the examination. None: to be found again."""
    train_order: tuple[int, ...] | None = None
    """The same for the training step that goes before an evaluation."""
    accelerator_allowed_bytes: int | None = None


class Held(Frozen):
    """What a child held, in bytes."""

    anonymous_bytes: Bytes
    shared_bytes: Bytes
    file_bytes: Bytes
    workers_bytes: Bytes
    load_peak_bytes: Bytes
    begin_bytes: Bytes
    """Held when the measured steps began: after the warm-up, and for `eval` after a training step."""
    step_peak_bytes: Bytes
    """Anonymous + shared of the child itself, most at once over the measured steps."""
    accelerator_bytes: Bytes | None
    accelerator_allocated_bytes: Bytes | None
    accelerator_retries: Annotated[int, Field(ge=0)]


class ProbeAnswer(Frozen):
    """What a child measured, in bytes and seconds."""

    held: Held
    step_s: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    notes: tuple[str, ...] = ()


def examine(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """What the task is: a few tiny steps, the worst samples, the static memory curve."""
    from batchcal.measure.inside.child import examine

    return examine(ExamineArguments.model_validate(arguments), context)


def probe(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Steps at one batch size."""
    from batchcal.measure.inside.child import probe

    return probe(ProbeArguments.model_validate(arguments), context)


def scout(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Which of several batch sizes the task takes."""
    from batchcal.measure.inside.scout import scout

    return scout(ScoutArguments.model_validate(arguments), context)
