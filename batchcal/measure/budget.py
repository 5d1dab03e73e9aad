"""Memory budget of the training, bytes: limit - memory of other processes - margin, on the host and on an accelerator."""

from __future__ import annotations

from batchcal.calibration.schema import Budget, Options
from batchcal.core.errors import UsageError
from batchcal.core.suggest import closest
from batchcal.core.units import format_bytes
from batchcal.detect.environment import Accelerator, Environment
from batchcal.machine.meters import read_status


def budgets_of(environment: Environment, options: Options) -> dict[str, Budget]:
    """Return the budget of each device to measure, the CPU first unless an accelerator was requested.

    Raises:
        UsageError: the device does not exist here.
    """
    requested = options.device
    budgets: dict[str, Budget] = {}
    if requested in ("auto", "cpu"):
        budgets["cpu"] = host_budget_of(environment, options)
    for accelerator in environment.accelerators:
        name = f"{accelerator.kind}:{accelerator.index}"
        if requested in (name, accelerator.kind) or (requested == "auto" and accelerator.index == 0):
            budgets.setdefault(name, accelerator_budget(accelerator, name, margin=options.accelerator_margin))
            if requested == accelerator.kind:
                break
    if not budgets:
        devices = ["cpu", *(f"{item.kind}:{item.index}" for item in environment.accelerators)]
        kind = requested.partition(":")[0]
        close = closest(requested, [name for name in ("auto", *devices, "cuda") if name != kind])
        raise UsageError(
            f"there is no device {requested!r} on this machine"
            + (f" (did you mean {close}?{'' if close in devices else ' This machine does not have it'})" if close else ""),
            known=f"devices of this machine: {', '.join(devices)}",
            try_=f"--device {close if close in devices else 'auto'}\nbatchcal detect    lists the devices",
        )
    return budgets


def host_budget_of(environment: Environment, options: Options) -> Budget:
    """Return `host_budget` for the requested options."""
    return host_budget(environment, margin=options.margin, memory_limit_bytes=options.memory_limit_bytes)


def host_budget(environment: Environment, *, margin: float, memory_limit_bytes: int | None) -> Budget:
    """Return the host's budget. This process does not run during training, so its memory does not count as memory of others.

    A requested `memory_limit_bytes` below the real limit is an allowance for the training itself. The real limit still applies.

    Raises:
        UsageError: the requested limit is above the real one.
    """
    limit = environment.memory.limit.value
    own = read_status()
    others_bytes = max(0, environment.memory.used_bytes - (own.hard_bytes if own is not None else 0))
    if environment.memory.limit.learned_from.startswith("RLIMIT"):
        others_bytes = 0  # a limit of this process alone: memory of other processes does not count towards it
    margin_bytes = int(limit * margin)
    budget = limit - others_bytes - margin_bytes
    # If the machine has less free memory than the group (neighbours outside of the group), the machine's free memory counts.
    budget = min(budget, environment.memory.available_bytes - int(min(limit, environment.memory.total_bytes) * margin))
    learned_from = environment.memory.limit.learned_from
    if memory_limit_bytes is not None:
        if memory_limit_bytes > limit:
            raise UsageError(
                f"--memory-limit {format_bytes(memory_limit_bytes)} is above the memory limit",
                known=f"the memory limit is {format_bytes(limit)} ({learned_from})",
                try_="a smaller --memory-limit, or leave the option out",
            )
        allowance_bytes = memory_limit_bytes - int(memory_limit_bytes * margin)
        if allowance_bytes < budget:
            return Budget(
                device="cpu",
                limit_bytes=memory_limit_bytes,
                others_bytes=0,
                margin_bytes=memory_limit_bytes - allowance_bytes,
                budget_bytes=allowance_bytes,
                learned_from="--memory-limit",
            )
    return Budget(
        device="cpu",
        limit_bytes=limit,
        others_bytes=others_bytes,
        margin_bytes=margin_bytes,
        budget_bytes=max(0, budget),
        learned_from=learned_from,
    )


def accelerator_budget(accelerator: Accelerator, device: str, *, margin: float) -> Budget:
    """Return the budget on an accelerator. Memory that the device does not report as free belongs to other tenants."""
    others_bytes = accelerator.total_bytes - accelerator.free_bytes
    margin_bytes = int(accelerator.total_bytes * margin)
    return Budget(
        device=device,
        limit_bytes=accelerator.total_bytes,
        others_bytes=others_bytes,
        margin_bytes=margin_bytes,
        budget_bytes=max(0, accelerator.free_bytes - margin_bytes),
        learned_from="reported by the device",
    )
