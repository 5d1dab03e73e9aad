"""One run of a command without placeholders: the memory, the speed and the batch size of the command as it is."""

from __future__ import annotations

from batchcal.calibration.schema import Budget
from batchcal.cli.invocation import Invocation, options_from
from batchcal.core.units import count_of, format_bytes
from batchcal.detect.detect import detect, detect_for
from batchcal.machine.cgroup import memory_meter
from batchcal.values.command_observation import CommandObservation


def observe(invocation: Invocation) -> CommandObservation:
    """Run the command of `invocation` once, for some optimizer steps, within the budget.

    Raises:
        UsageError: the command cannot be observed.
        UserCodeError: it failed.
        NothingFits: it needs more memory than the budget.
    """
    from batchcal.measure.budget import budgets_of
    from batchcal.measure.commands.probe import command_probe
    from batchcal.measure.deadline import Deadline

    reference = invocation.task()
    limit_bytes = detect().memory.limit.value
    options = options_from(invocation.settings, limit_bytes=limit_bytes, of_command=True)
    environment = detect_for(options.device)
    budgets: dict[str, Budget] = budgets_of(environment, options)
    probe = command_probe(reference, options, environment, budgets, memory_meter(), deadline=Deadline(options.time_limit_s))
    try:
        return probe.observe_once(options.allocator)
    finally:
        probe.close()


def lines_of(observed: CommandObservation) -> list[str]:
    """Return the text of an observation."""
    rows = "an unknown number of rows" if observed.rows is None else count_of(round(observed.rows), "row")
    micro = "1 micro-batch" if observed.micro_batches == 1 else f"{observed.micro_batches} micro-batches"
    processes = "" if observed.world_size == 1 else f", {observed.world_size} processes together"
    lines = [
        f"observed {count_of(observed.steps, 'optimizer step')} of {micro} with {rows}{processes}",
        f"peak     {format_bytes(observed.peak_bytes)} of a budget of {format_bytes(observed.budget_bytes)}",
        f"speed    {observed.step_s * 1000:.0f} ms per step"
        + ("" if observed.samples_per_s is None else f", {observed.samples_per_s:.0f} samples/s"),
        f"waits    {observed.wait_share:.0%} of a step for its batches, "
        + (count_of(observed.loader_workers, "DataLoader worker") if observed.loader_workers else "no DataLoader workers"),
        f"threads  {observed.threads}, allocator {observed.allocator}",
    ]
    likely = observed.likely_batch_size()
    lines.append(
        "batch    no word of the command equals the observed rows of a micro-batch"
        if likely is None
        else f"batch    {likely} is the batch size of a micro-batch"
    )
    return lines
