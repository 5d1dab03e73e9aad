"""Runs functions in fenced children: which launcher, how much memory, how much time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from batchcal.calibration.schema import Isolation
from batchcal.core.errors import GuardError
from batchcal.core.units import MIB
from batchcal.guard.channel.wire import JSON
from batchcal.guard.ending import Ending
from batchcal.guard.job import Function
from batchcal.guard.launch import FunctionJob, Launcher
from batchcal.guard.limits.watchdog import GroupMeter, trip_distance
from batchcal.guard.run import ChildLimits, Listener, run
from batchcal.machine.meters import read_status
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.deadline import Deadline

UNSHARED_BYTES: Final = 16 * MIB
"""Memory that a forked child and its zygote hold twice after the child wrote to shared pages (4 to 12 MiB with gc.freeze)."""
ZYGOTE_BYTES: Final = 240 * MIB
"""Anonymous memory of a zygote: 219 to 229 MiB with torch 2.13 on CPU, mostly written while its libraries are linked."""
LIBRARY_BYTES: Final = 384 * MIB
"""Pages of torch's libraries that are in use. If zygotes leave no room for them, they are evicted and read again: in 1 GiB, four
zygotes at once took longer than one after another."""
ROOM_FACTOR: Final = 2.0
"""Multiple of the expected peak of a child that must be free if the processes of other policies stay. The first prediction can be
too low by a third (681 MiB for 828, a U-Net)."""
LOAD_LIMIT_S: Final = 300.0
WARM_UP_LIMIT_S: Final = 900.0
"""torch.compile takes minutes for large models. The deadline of the command ends anything longer."""


@dataclass
class ChildRunner:
    """Launchers of all policies, the memory group that the children share, and the end of the command."""

    launchers: Launchers
    group: GroupMeter
    host_allowed_bytes: int
    """Host memory that no child may exceed in any kind of run."""
    directory: str
    """Working directory of the children."""
    deadline: Deadline | None = None
    """End of every child. None: no deadline."""
    neighbours: bool = False
    """Other processes start and end in the memory group, so its growth is not counted against a child."""
    _last_allocator: str | None = None
    _alternating: frozenset[str] = frozenset()
    """Policies that are timed alternately. Their launchers stay and do not start again each time."""
    _expected: tuple[tuple[str, ...], int] = field(default=((), 0))
    """Policies that will be timed alternately after the next examination, and the memory of their runs, bytes."""

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline.left_s()

    def limits(
        self,
        allocator: str,
        measure_s: float,
        *,
        allowed_bytes: int | None = None,
        host_fence: bool = True,
        launchers_start: bool = False,
    ) -> ChildLimits:
        """Return the limits of a child.

        Args:
            measure_s: time for the phase `measure`, seconds.
            allowed_bytes: memory at which the fence stops the child. Never more than `most_allowed`, which is the default.
            host_fence: False: no limit within the child, because workers or a device share its memory.
            launchers_start: other launchers may start while the child runs.
        """
        most = self.most_allowed(allocator)
        return ChildLimits(
            allowed_bytes=most if allowed_bytes is None else min(allowed_bytes, most),
            phase_s={"load": LOAD_LIMIT_S, "read": LOAD_LIMIT_S, "warm-up": WARM_UP_LIMIT_S, "measure": measure_s},
            host_fence=host_fence,
            neighbours=self.has_neighbours or launchers_start,
        )

    def run(
        self,
        function: Function,
        arguments: Mapping[str, JSON],
        allocator: str,
        limits: ChildLimits,
        *,
        listen: Listener | None = None,
    ) -> Ending:
        """Run `function` in a child, within the deadline. If the zygote died, start another one, once."""
        job = FunctionJob(function, dict(arguments), self.directory, self.launchers.environment(allocator))
        if self.deadline is not None:
            left_s, name = self.deadline.left_s(), self.deadline.name
            if left_s <= 0:
                return Ending(killed_for="deadline", kill_reason=f"{name} ended before the process started", limit_name=name)
            limits = replace(limits, total_s=left_s, total_name=name)
        limits = replace(limits, shared_bytes=self.shared_bytes(allocator))
        try:
            return run(job, self._launcher(allocator), self.group, limits, listen)
        except GuardError:
            self.launchers.drop(allocator)  # the caller repeats the lost run
            return run(job, self._launcher(allocator), self.group, limits, listen)

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Start launchers during the next examination if there is room for all of them. See `Probe`."""
        self._expected = tuple(allocators), demand_bytes

    def take_expected(self) -> Callable[[], None] | None:
        """Return a function that starts the expected launchers if there is room for them. None: none are expected."""
        (allocators, demand_bytes), self._expected = self._expected, ((), 0)
        if not allocators:
            return None

        def begin() -> None:
            if self._has_room_for(allocators, demand_bytes):
                self.launchers.begin(allocators)

        return begin

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        """Start a launcher for each of `allocators` if there is room for all of them. See `Probe`."""
        self._alternating = frozenset()
        if self._has_room_for(allocators, demand_bytes):
            self._alternating = frozenset(allocators)
            self.launchers.start_all(allocators)

    def end_alternation(self) -> None:
        """Policies are no longer timed alternately: `make_room` may close their launchers."""
        self._alternating = frozenset()

    def make_room(self, allocator: str, demand_bytes: int | None) -> None:
        """Close the launchers of other policies, unless memory has room for them beside a child of `demand_bytes`. Each takes
        seconds to start again. None: the demand is unknown, so they are closed."""
        free = self.group.limit_bytes - self.group.hard_bytes() - ZYGOTE_BYTES
        has_room = demand_bytes is not None and free >= demand_bytes * ROOM_FACTOR + LIBRARY_BYTES
        if not has_room and allocator not in self._alternating:
            self.launchers.keep_only(allocator)

    @property
    def has_neighbours(self) -> bool:
        """True if other processes start or end in the memory group while a child runs."""
        return self.neighbours or self.launchers.are_starting

    def most_allowed(self, allocator: str) -> int:
        """Memory of a child (as in a training) at which the group is as full as the fence allows, or the memory limit of the user
        is reached, bytes."""
        limit, shared = self.group.limit_bytes, self.shared_bytes(allocator)
        room = limit - trip_distance(limit, armed=True) - self.group.hard_bytes()
        return max(0, min(room + shared - (UNSHARED_BYTES if shared else 0), self.host_allowed_bytes))

    def shared_bytes(self, allocator: str) -> int:
        """Memory that a child shares with the zygote that it was forked from, bytes. A training holds it alone."""
        if self.left_s <= 0:
            return 0  # no child is started, so it needs no launcher
        pid = self._launcher(allocator).overhead_pid
        status = None if pid is None else read_status(pid)
        return 0 if status is None else status.anonymous_bytes

    def isolation(self, ending: Ending, device: str, allocator: str) -> Isolation:
        """Protection that a child had."""
        layers = ("prediction", *ending.layers, *(("accelerator-fraction",) if device.startswith("cuda") else ()))
        launcher = self.launchers.running_for(allocator)
        return Isolation(launcher="zygote" if launcher is None else launcher.name, fence=layers, missing=ending.missing)

    def leave(self) -> None:
        """Keep only the launcher that was used last, for the next user of these launchers."""
        if self._last_allocator is not None:
            self.launchers.keep_only(self._last_allocator)

    def _has_room_for(self, allocators: Sequence[str], demand_bytes: int) -> bool:
        """True if memory has room for a launcher of each of `allocators`, and for a run of `demand_bytes`."""
        free = self.group.limit_bytes - self.group.hard_bytes() - self.launchers.missing(allocators) * ZYGOTE_BYTES
        return free >= demand_bytes + LIBRARY_BYTES

    def _launcher(self, allocator: str) -> Launcher:
        self._last_allocator = allocator
        return self.launchers.get(allocator)
