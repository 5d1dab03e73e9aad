"""What a calibration is asked for, with the defaults that depend on the machine."""

from __future__ import annotations

import math
from typing import Final

from batchcal.calibration.schema import OFF, Objective, Options
from batchcal.core.errors import UsageError
from batchcal.core.units import GIB
from batchcal.guard.allocator import AUTO

MARGIN_CPU: Final = 0.15
MARGIN_ACCELERATOR: Final = 0.10
HEADROOM_CPU: Final = 0.60
HEADROOM_ACCELERATOR: Final = 0.70
TIME_LIMIT_S: Final = 60.0
TIERS: Final = ((1 * GIB, 8), (2 * GIB, 12), (4 * GIB, 16))
"""Steps per probe at most, by memory limit: below 1 GiB 8, to 2 GiB 12, to 4 GiB 16, above 32."""
LARGEST_TIER: Final = 32
LARGEST: Final = 2**31
"""No count that is asked for may be larger: it would not fit the file."""

MOST_WORKERS: Final = 1024
LARGEST_SEED: Final = 2**63


def samples_for(limit_bytes: int) -> int:
    """Steps per probe at most under `limit_bytes`."""
    return next((samples for below, samples in TIERS if limit_bytes < below), LARGEST_TIER)


def options(
    limit_bytes: int,
    *,
    margin: float | None = None,
    accelerator_margin: float | None = None,
    headroom: float | None = None,
    memory_limit_bytes: int | None = None,
    samples: int | None = None,
    max_batch: int | None = None,
    multiple_of: int = 1,
    device: str = "auto",
    allocator: str = AUTO,
    activation_checkpointing: str = OFF,
    workers: int | None = None,
    effective_batch: int | None = None,
    seed: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
    max_probes: int | None = None,
    objective: Objective = "throughput",
) -> Options:
    """Options with every default filled in, for a machine whose memory limit is `limit_bytes`.

    Args:
        accelerator_margin: default: `margin` where it is given.
        allocator, workers: what is given is not raced.
        objective: of the plan that is rehearsed.

    Raises:
        UsageError: a value out of its range, or two that contradict each other.
    """
    accelerated = not device.startswith("cpu") and device != "auto"
    _positive("samples", samples)
    _positive("max-batch", max_batch)
    _positive("multiple-of", multiple_of)
    _positive("max-probes", max_probes)
    _positive("effective-batch", effective_batch)
    if memory_limit_bytes is not None and memory_limit_bytes < 1:
        raise UsageError(f"memory-limit {memory_limit_bytes} is no amount of memory", try_="--memory-limit 2GiB")
    if not 0 < time_limit_s < math.inf:
        raise UsageError(f"time-limit {time_limit_s:g} s is no time to measure in", try_="--time-limit 60s")
    if workers is not None and workers < 0:
        raise UsageError(f"workers {workers} is negative", try_="--workers 0")
    if max_batch is not None and max_batch < multiple_of:
        raise UsageError(
            f"no batch is a multiple of {multiple_of} and at most {max_batch}",
            try_=f"--max-batch {multiple_of} or a smaller --multiple-of",
        )
    if workers is not None and workers > MOST_WORKERS:
        raise UsageError(f"workers {workers} is more than a machine runs", known=f"at most {MOST_WORKERS}", try_="--workers 4")
    if not -LARGEST_SEED <= seed < LARGEST_SEED:
        raise UsageError(f"seed {seed} does not fit 64 bits", known="torch takes no larger one", try_="--seed 0")
    if accelerator_margin is None:
        accelerator_margin = MARGIN_ACCELERATOR if margin is None else margin
    margin = (MARGIN_ACCELERATOR if accelerated else MARGIN_CPU) if margin is None else margin
    headroom = (HEADROOM_ACCELERATOR if accelerated else HEADROOM_CPU) if headroom is None else headroom
    for name, value in (("margin", margin), ("headroom", headroom)):
        if not 0 <= value < 1:
            raise UsageError(f"{name} {value} is not a fraction from 0 to below 1", try_=f"--{name} 15%")
    return Options(
        margin=margin,
        accelerator_margin=accelerator_margin,
        headroom=headroom,
        memory_limit_bytes=memory_limit_bytes,
        samples=samples or samples_for(min(limit_bytes, memory_limit_bytes or limit_bytes)),
        max_batch=max_batch,
        multiple_of=multiple_of,
        device=device,
        allocator=allocator,
        activation_checkpointing=activation_checkpointing.strip() or OFF,
        workers=workers,
        effective_batch=effective_batch,
        seed=seed,
        time_limit_s=time_limit_s,
        max_probes=max_probes,
        objective=objective,
    )


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{name} {value} is not a positive number", try_=f"--{name} 8")
    if value is not None and value > LARGEST:
        raise UsageError(f"{name} {value} is more than anybody has", known=f"at most {LARGEST}", try_=f"--{name} 8192")
