"""Micro-batches of a command. It divides an effective batch itself, into equal micro-batches on each of its processes."""

from __future__ import annotations

from batchcal.calibration.records.command import CommandRecord
from batchcal.calibration.schema import Calibration, Finding
from batchcal.core.errors import UsageError
from batchcal.guard.outcome import Fits
from batchcal.plan.division.micro_batches import Largest, largest_of
from batchcal.plan.division.rules import DivisionRefused
from batchcal.values.settings import Objective


def largest_of_command(
    calibration: Calibration, finding: Finding, command: CommandRecord, objective: Objective, per_rank: int | None
) -> Largest:
    """Return the target size of the micro-batches: the fastest verified one, or the capacity for the objective `memory`.

    Args:
        per_rank: samples of a step on one rank. None: not set.

    Raises:
        DivisionRefused: the batch must be divided, and the command line does not set the number of micro-batches.
        NoCalibration: see `largest_of`.
    """
    capacity = largest_of(calibration, finding, "memory", per_rank)
    if per_rank is not None and per_rank > capacity.batch and not command.accumulates:
        ranks = command.world_size
        raise DivisionRefused(
            f"an effective batch of {per_rank * ranks} does not fit undivided, and the command line sets no accumulation",
            known=f"the largest micro-batch is {capacity.batch}; the command line has no {{accumulation_steps}}",
            try_="{accumulation_steps} where the command reads its accumulation steps, or "
            f"--effective-batch {capacity.batch * ranks}",
        )
    largest = _fastest(calibration, finding, capacity) if objective == "throughput" else capacity
    if per_rank is None or (per_rank <= capacity.batch and not command.accumulates):
        return capacity if per_rank is not None else largest
    divisor = next(size for size in range(min(largest.batch, per_rank), 0, -1) if per_rank % size == 0)
    if divisor == largest.batch:
        return largest
    notices = largest.notices
    if divisor * 2 < largest.batch:
        notices += (
            f"{per_rank} samples have no divisor between {divisor + 1} and {largest.batch}, so the micro-batches are small; "
            f"an effective batch of {per_rank // largest.batch * largest.batch * command.world_size} would use {largest.batch}",
        )
    return Largest(divisor, f"the largest divisor of {per_rank} up to {largest.batch}, {largest.name},", notices)


def check_equal(sizes: tuple[int, ...], world_size: int) -> None:
    """Check that all micro-batches have the same size, because a command line gives one size.

    Raises:
        DivisionRefused: they differ.
    """
    if len(set(sizes)) > 1:
        raise DivisionRefused(
            f"an effective batch of {sum(sizes) * world_size} cannot be divided into equal micro-batches by these rules",
            known=f"the sizes would be {', '.join(map(str, sizes))}; a command has one batch size",
            try_=f"--effective-batch {sizes[0] * len(sizes) * world_size}",
        )


def ranks_of_command(command: CommandRecord, requested: int) -> int:
    """Return the number of ranks of the command.

    Args:
        requested: 1, or the number that the user gives.

    Raises:
        UsageError: another number is requested. The measurement is valid for its own number only.
    """
    if requested in (1, command.world_size):
        return command.world_size
    raise UsageError(
        f"the processes of the command were {command.world_size} when it was measured, not {requested}",
        known="they share the memory and the cores of this machine",
        try_=f"a calibration of the command line that starts {requested} processes",
    )


def _fastest(calibration: Calibration, finding: Finding, capacity: Largest) -> Largest:
    """Return the size with the highest rate of all probes under the policy, up to the capacity."""
    rates = {
        measured.batch: measured.outcome.samples_per_s
        for measured in calibration.measurements
        if (measured.device, measured.allocator, measured.mode) == (finding.device, finding.allocator, "train")
        and isinstance(measured.outcome, Fits)
        and measured.batch <= capacity.batch
    }
    batch = max(rates, key=lambda size: rates[size], default=capacity.batch)
    return capacity if batch == capacity.batch else Largest(batch, "the fastest size that was verified", capacity.notices)
