"""Options of a calibration, with the defaults that depend on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypedDict, Unpack

from batchcal.calibration.schema import Options
from batchcal.core.errors import UsageError
from batchcal.core.readers import batch_size
from batchcal.core.units import GIB
from batchcal.values.settings import CalibrateSettings, Objective, PlanSettings

MARGIN_CPU: Final = 0.15
MARGIN_ACCELERATOR: Final = 0.10
HEADROOM_CPU: Final = 0.60
HEADROOM_ACCELERATOR: Final = 0.70
TIERS: Final = ((1 * GIB, 8), (2 * GIB, 12), (4 * GIB, 16))
"""Maximum number of steps per probe, by memory limit: below 1 GiB 8, to 2 GiB 12, to 4 GiB 16, above 32."""
LARGEST_TIER: Final = 32

_BY_FIELD: Final = {option.field: option for option in (*CalibrateSettings.options(), *PlanSettings.options())}


class Requested(TypedDict, total=False):
    """Options that a caller may set from Python; `values.settings` explains them. None or missing: the default."""

    margin: float | None
    accelerator_margin: float | None
    """Share of an accelerator's memory to leave free. Default: `margin` if given, else 0.10."""
    headroom: float | None
    memory_limit_bytes: int | None
    samples: int | None
    max_batch: int | None
    multiple_of: int
    device: str
    allocator: str
    activation_checkpointing: str
    workers: int | None
    effective_batch: int | None
    seed: int
    time_limit_s: float
    max_probes: int | None
    objective: Objective
    accept_inexact: bool
    min_micro_batch: int | None


def samples_for(limit_bytes: int) -> int:
    """Return the maximum number of steps per probe for a memory limit of `limit_bytes`."""
    return next((samples for below, samples in TIERS if limit_bytes < below), LARGEST_TIER)


def options(limit_bytes: int, **requested: Unpack[Requested]) -> Options:
    """Return the options with all defaults filled in, for a machine with a memory limit of `limit_bytes`.

    Raises:
        TypeError: a name is not an option.
        UsageError: a value is out of its range, or two values contradict each other.
    """
    for name in requested:
        if name not in Requested.__annotations__:
            raise TypeError(f"{name!r} is not an option of a calibration; valid names: {', '.join(Requested.__annotations__)}")
    return with_defaults(limit_bytes, requested)


def with_defaults(limit_bytes: int, requested: Mapping[str, object]) -> Options:
    """Return `options` for a mapping of values by name.

    Raises:
        UsageError: see `options`.
    """
    requested_values = {name: value for name, value in requested.items() if value is not None}
    values = {
        field: option.checked(requested_values[field]) if field in requested_values else option.default
        for field, option in _BY_FIELD.items()
    }
    device = str(values["device"])
    accelerated = not device.startswith("cpu") and device != "auto"
    # A given margin applies to every device.
    accelerator_margin = requested_values.get(
        "accelerator_margin", MARGIN_ACCELERATOR if values["margin"] is None else values["margin"]
    )
    values["accelerator_margin"] = CalibrateSettings.margin.checked(accelerator_margin)
    if values["margin"] is None:
        values["margin"] = MARGIN_ACCELERATOR if accelerated else MARGIN_CPU
    if values["headroom"] is None:
        values["headroom"] = HEADROOM_ACCELERATOR if accelerated else HEADROOM_CPU
    if values["samples"] is None:
        limit = values["memory_limit_bytes"]
        values["samples"] = samples_for(min(limit_bytes, limit) if isinstance(limit, int) else limit_bytes)
    if values["effective_batch"] is not None:
        batch_size(str(values["effective_batch"]), "effective-batch")  # a plan may have more; a calibration's file may not
    filled = Options.model_validate(values)
    if filled.max_batch is not None and filled.max_batch < filled.multiple_of:
        raise UsageError(
            f"no batch size up to {filled.max_batch} is a multiple of {filled.multiple_of}",
            try_=f"--max-batch {filled.multiple_of} or a smaller --multiple-of",
        )
    return filled
