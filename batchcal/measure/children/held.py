"""What a child of a calibration held and took, as it reports it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Frozen

Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
"""What a child may say it held: nobody has a pebibyte."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
