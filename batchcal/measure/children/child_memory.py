"""Memory and time of a child of a calibration, as the child reports them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Frozen

Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
"""Bytes that a child reports. Larger values are errors: no machine has a pebibyte."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ChildMemory(Frozen):
    """Memory of a child, bytes."""

    anonymous_bytes: Bytes
    shared_bytes: Bytes
    file_bytes: Bytes
    workers_bytes: Bytes
    load_peak_bytes: Bytes
    begin_bytes: Bytes
    """Memory at the start of the measured steps: after the warm-up, and for `eval` after a training step."""
    step_peak_bytes: Bytes
    """Peak of anonymous + shared memory of the child itself over the measured steps."""
    accelerator_bytes: Bytes | None
    accelerator_allocated_bytes: Bytes | None
    accelerator_retries: Annotated[int, Field(ge=0)]
