"""What travels to a measuring child: everything it needs, as JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.calibration.schema import OFF, Mode
from batchcal.core.values import Frozen
from batchcal.measure.children.probe import Examination
from batchcal.workload.in_flight import PREFETCH_FACTOR
from batchcal.workload.reference import TaskReference

Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
"""What a child may say it held: nobody has a pebibyte."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Setting(Frozen):
    """What is the same for every child of a calibration on one device."""

    reference: TaskReference
    device: str
    seed: int
    activation_checkpointing: str = OFF
    intra_op_threads: int
    interop_threads: int = 1
    workers: int
    prefetch_factor: int = PREFETCH_FACTOR
    smallest_batch: int
    """Batch of the warm-up: two samples, since BatchNorm refuses one, or `multiple_of`."""
    accelerator_free_bytes: int | None = None
    """Free on the device before any of our contexts; with it a context's own share is known."""


class ExamineArguments(Frozen):
    setting: Setting
    budget_bytes: int
    """Only to choose the sizes of the static curve."""
    limit_s: float
    traced: bool = True
    """False: the static curve comes from the profiler, since running the model without memory has ended a child before."""
    known: Examination | None = None
    """What was found under another policy: then only what depends on the policy is measured."""
    order: tuple[int, ...] | None = None
    """See `ProbeArguments`."""


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
