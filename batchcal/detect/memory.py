"""Host memory: the binding limit over all levels, the current use, and the processes that a kill would end."""

from __future__ import annotations

import re
from typing import Final, Literal

from batchcal.core.units import format_bytes
from batchcal.detect.bounds import Bound, least_count
from batchcal.detect.environment import Memory
from batchcal.detect.limits import Limits
from batchcal.machine.cgroup import MachineMemory, finite, memory_bounds, memory_meter
from batchcal.machine.hierarchy import Chain, locate
from batchcal.machine.roots import Root

_BECAUSE: Final[dict[Literal["max", "high", "hidden"], str]] = {
    "max": "above it, the kernel kills a process of the group",
    "high": "above it, the kernel pauses the group to reclaim memory, and a training becomes too slow",
    "hidden": "the limit of a parent group that is not visible here",
}


def read_memory(root: Root, limits: Limits, notes: list[str]) -> Memory:
    """Read the memory behind `root`. Values that cannot be read are reported in `notes`."""
    chain = locate("memory", root)
    machine = MachineMemory(chain, root)
    if not machine.learned_from.startswith("/proc/meminfo"):
        notes.append(f"/proc/meminfo cannot be read: the memory of the machine is from {machine.learned_from}")
    elif chain is None:
        notes.append("no memory control group is visible: a memory limit of the container is unknown here")
    meter = memory_meter(root)
    try:
        groups = memory_bounds(chain, root) if chain else ()
        bounds = [
            # Of two equal limits, the upper one binds first: more is charged against it.
            *(Bound(value=group.bytes, learned_from=group.file, because=_BECAUSE[group.kind]) for group in reversed(groups)),
            Bound(
                value=machine.total_bytes,
                learned_from=machine.learned_from,
                because="the memory of the machine",
            ),
        ]
        if limits.data_bytes is not None:
            because = "above it, an allocation of this process fails"
            bounds.append(Bound(value=limits.data_bytes, learned_from="RLIMIT_DATA", because=because))
        if limits.address_space_bytes is not None:
            because = "the maximum address space of this process, both used and only reserved"
            bounds.append(Bound(value=limits.address_space_bytes, learned_from="RLIMIT_AS", because=because))
        if isinstance(meter, MachineMemory) and meter.limit_bytes < meter.total_bytes:
            notes.append(
                "the usage of the limiting control group cannot be read: the usage of the complete machine is shown instead"
            )
        return Memory(
            limit=least_count(bounds, format_bytes),
            total_bytes=machine.total_bytes,
            available_bytes=machine.available_bytes(),
            used_bytes=meter.hard_bytes(),
            reclaimable_bytes=meter.reclaimable_bytes(),
            high_bytes=min((group.bytes for group in groups if group.kind == "high"), default=None),
            swap_total_bytes=machine.swap_total_bytes(),
            swap_limit_bytes=_swap_limit(chain, root),
            rlimit_data_bytes=limits.data_bytes,
            rlimit_as_bytes=limits.address_space_bytes,
            oom_group=_oom_group(chain, root),
            cgroup_version=chain.version if chain else "none",
            cgroup_path=meter.directory,
        )
    finally:
        machine.close()
        meter.close()


def _swap_limit(chain: Chain | None, root: Root) -> int | None:
    """Return the bytes of swap that the groups allow. None: no limit."""
    allowed: list[int] = []
    for level in chain.levels if chain else ():
        if chain and chain.version == "v2":
            limit = finite(root.number(f"{level}/memory.swap.max"))
        else:
            both = finite(root.number(f"{level}/memory.memsw.limit_in_bytes"))
            memory = finite(root.number(f"{level}/memory.limit_in_bytes"))
            limit = None if both is None or memory is None else max(both - memory, 0)
        if limit is not None:
            allowed.append(limit)
    return min(allowed, default=None)


def _oom_group(chain: Chain | None, root: Root) -> bool | None:
    """True if any group of this process is killed as a unit. The kernel kills the outermost such group within the full one."""
    if chain is None or chain.version == "v1":
        return None
    switches = [root.read(f"{level}/memory.oom.group") for level in chain.levels]
    readable = [switch for switch in switches if switch is not None and re.fullmatch("[01]", switch)]
    return ("1" in readable) if readable else None
