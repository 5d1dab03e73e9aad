"""Micro-batches of a command. It divides an effective batch itself, into equal micro-batches."""

from __future__ import annotations

from batchcal.calibration.records.command import CommandRecord
from batchcal.core.errors import UsageError
from batchcal.core.units import count_of
from batchcal.plan.division.micro_batches import Largest
from batchcal.plan.division.rules import DivisionRefused


def largest_of_command(command: CommandRecord, largest: Largest, per_rank: int) -> Largest:
    """Return the largest micro-batch of which some have `per_rank` samples together.

    Raises:
        DivisionRefused: the batch must be divided, and the command line does not set the number of micro-batches.
    """
    if per_rank <= largest.batch:
        return largest
    if not command.accumulates:
        raise DivisionRefused(
            f"an effective batch of {per_rank} does not fit undivided, and the command line sets no accumulation",
            known=f"the largest micro-batch is {largest.batch}; the command line has no {{accumulation_steps}}",
            try_=f"{{accumulation_steps}} where the command reads its accumulation steps, or --effective-batch {largest.batch}",
        )
    divisor = next(size for size in range(largest.batch, 0, -1) if per_rank % size == 0)
    return Largest(divisor, f"the largest divisor of {per_rank} up to {largest.batch}, {largest.name},", largest.notices)


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
        f"the command was measured with {count_of(command.world_size, 'process')}, not with {requested}",
        known="its processes share the memory and the cores of this machine",
        try_=f"batchcal calibrate -- the command that starts {requested} processes",
    )
