"""Where the control groups of this process are: v1, v2 or both at once, nested, in a namespace of their own, or hidden.

/proc/self/cgroup names our group in each hierarchy, /proc/self/mountinfo says what part of a hierarchy is to be seen and
where. A limit may stand at any level between the two, so the whole way up is what is answered.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from batchcal.core.values import Frozen
from batchcal.machine.roots import HERE, Root

Controller = Literal["memory", "cpu", "cpuset", "pids"]
Version = Literal["v1", "v2"]

_PROBES: Final[dict[Controller, str]] = {
    "memory": "memory.max",
    "cpu": "cpu.max",
    "cpuset": "cpuset.cpus.effective",
    "pids": "pids.max",
}
"""A file that shows that a v2 group has the controller. The root group has none of them; its cgroup.controllers tells."""


class Mount(Frozen):
    """A line of the mount table that shows a part of a hierarchy."""

    top: str
    """The group that is seen at `point`: `/`, or `/docker/4f1c` where only a container's own part is mounted."""
    point: str
    version: Version
    controllers: frozenset[str] = frozenset()
    """v1 only; on v2 each group says it itself."""


class Chain(Frozen):
    """The groups that one controller holds us in."""

    version: Version
    levels: tuple[str, ...]
    """Directories, our own group first, the topmost that can be seen last. Never empty."""

    @property
    def own(self) -> str:
        return self.levels[0]

    @property
    def top(self) -> str:
        return self.levels[-1]


def locate(controller: Controller, root: Root = HERE) -> Chain | None:
    """The groups of this process under `controller`; None where no mounted hierarchy has it."""
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


def own_groups(root: Root = HERE) -> dict[str, str]:
    """Our group by v1 controller; by the empty string for v2. The paths are those of /proc/self/cgroup, not of a mount."""
    groups: dict[str, str] = {}
    for line in (root.read("/proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                groups[controller.removeprefix("name=")] = fields[2]
    return groups


def cgroup_mounts(root: Root = HERE) -> list[Mount]:
    """The mounted hierarchies in the order in which they were mounted."""
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
    """The levels in the mount that shows most of our way up. The same hierarchy may be mounted twice: an agent that watches
    the host has the host's beside its own."""
    best: tuple[str, ...] = ()
    best_rank = 0
    for mount in mounts:
        below = _below(group, mount.top)
        levels = _existing_levels(mount.point, below or (), root)
        conventional = mount.point.startswith("/sys/fs/cgroup")
        if below is not None and len(levels) == len(below) + 1:
            rank = 4 if conventional else 3
        elif conventional:
            # Our path is one of another namespace (Docker in Docker, a path of the host): the top of what is
            # mounted here is a group that we are in, and where a container's limit stands.
            rank = 2
        else:
            rank = 0
        if levels and rank > best_rank:
            best, best_rank = levels, rank
    return best


def _below(group: str, top: str) -> tuple[str, ...] | None:
    """The components of `group` below `top`; None where it is not below it."""
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
    """The mount table writes blanks, tabs, newlines and backslashes as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
