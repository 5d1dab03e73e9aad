"""Location of the control groups of this process: v1, v2 or both at once, nested, in their own namespace, or hidden.

/proc/self/cgroup names the group of this process in each hierarchy. /proc/self/mountinfo lists the visible part of a hierarchy
and its mount point. A limit may be set at any level between the two, so all levels are returned.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from batchcal.core.values import Frozen
from batchcal.machine.roots import THIS_MACHINE, Root

Controller = Literal["memory", "cpu", "cpuset", "pids"]
Version = Literal["v1", "v2"]

_PROBES: Final[dict[Controller, str]] = {
    "memory": "memory.max",
    "cpu": "cpu.max",
    "cpuset": "cpuset.cpus.effective",
    "pids": "pids.max",
}
"""A file that shows that a v2 group has the controller. The root group has none of them; its cgroup.controllers lists it."""


class Mount(Frozen):
    """A line of the mount table that shows a part of a hierarchy."""

    top: str
    """The group that is mounted at `point`: `/`, or `/docker/4f1c` if only a container's own part is mounted."""
    point: str
    version: Version
    controllers: frozenset[str] = frozenset()
    """v1 only; on v2 each group lists its own controllers."""


class Chain(Frozen):
    """Groups of this process under one controller."""

    version: Version
    levels: tuple[str, ...]
    """Directories, the group of this process first, the topmost visible group last. Never empty."""

    @property
    def own(self) -> str:
        return self.levels[0]

    @property
    def top(self) -> str:
        return self.levels[-1]


def locate(controller: Controller, root: Root = THIS_MACHINE) -> Chain | None:
    """Return the groups of this process under `controller`. None: no mounted hierarchy has it."""
    groups = own_groups(root)
    mounts = cgroup_mounts(root)
    if controller in groups:
        shown = [mount for mount in mounts if controller in mount.controllers]
        levels = _best_levels(shown, groups[controller], root)
        if levels:
            return Chain(version="v1", levels=levels)
    if "" in groups:
        levels = _best_levels([mount for mount in mounts if mount.version == "v2"], groups[""], root)
        if any(_v2_has(controller, level, root) for level in levels):
            return Chain(version="v2", levels=levels)
    return None


def own_groups(root: Root = THIS_MACHINE) -> dict[str, str]:
    """Group of this process by v1 controller; by the empty string for v2. Paths are from /proc/self/cgroup, not from a mount."""
    groups: dict[str, str] = {}
    for line in (root.read("/proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                groups[controller.removeprefix("name=")] = fields[2]
    return groups


def cgroup_mounts(root: Root = THIS_MACHINE) -> list[Mount]:
    """Mounted hierarchies in mount order."""
    mounts: list[Mount] = []
    for line in (root.read("/proc/self/mountinfo") or "").splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not separator or len(left) < 5 or len(right) < 3:
            continue
        top, point = _unescape(left[3]), _unescape(left[4])
        if right[0] == "cgroup2":
            mounts.append(Mount(top=top, point=point, version="v2"))
        elif right[0] == "cgroup":
            mounts.append(Mount(top=top, point=point, version="v1", controllers=frozenset(right[2].split(","))))
    return mounts


def _best_levels(mounts: list[Mount], group: str, root: Root) -> tuple[str, ...]:
    """Levels in the mount that shows the largest part of the path of `group`. The same hierarchy may be mounted twice: an agent
    that monitors the host has the mount of the host and its own."""
    best: tuple[str, ...] = ()
    best_rank = 0
    for mount in mounts:
        below = _below(group, mount.top)
        levels = _existing_levels(mount.point, below or (), root)
        conventional = mount.point.startswith("/sys/fs/cgroup")
        if below is not None and len(levels) == len(below) + 1:
            rank = 4 if conventional else 3
        elif conventional:
            # The path belongs to another namespace (Docker in Docker, a path of the host). The top of this mount
            # is a group of this process, and the limit of a container is set there.
            rank = 2
        else:
            rank = 0
        if levels and rank > best_rank:
            best, best_rank = levels, rank
    return best


def _below(group: str, top: str) -> tuple[str, ...] | None:
    """Components of `group` below `top`. None: `group` is not below `top`."""
    group_parts = tuple(part for part in group.split("/") if part)
    top_parts = tuple(part for part in top.split("/") if part)
    rest = group_parts[len(top_parts) :]
    return rest if group_parts[: len(top_parts)] == top_parts and ".." not in rest else None


def _existing_levels(point: str, below: tuple[str, ...], root: Root) -> tuple[str, ...]:
    levels: list[str] = []
    directory = point
    for part in ("", *below):
        directory = f"{directory.rstrip('/')}/{part}" if part else directory
        if not root.exists(directory):
            break
        levels.append(directory)
    return tuple(reversed(levels))


def _v2_has(controller: Controller, level: str, root: Root) -> bool:
    listed = (root.read(f"{level}/cgroup.controllers") or "").split()
    return controller in listed or root.exists(f"{level}/{_PROBES[controller]}")


def _unescape(field: str) -> str:
    """Decode a field of the mount table, which writes blanks, tabs, newlines and backslashes as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
