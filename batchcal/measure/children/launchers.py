"""Launchers, one for each allocator policy that needs its own, kept while they are needed.

`default` and `retain` have one in common: a child sets glibc's thresholds itself. For the other policies, a process must start
with their environment. A launcher takes 240 MiB and seconds to start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from batchcal.core.errors import GuardError
from batchcal.guard.launch import Launcher, SpawnLauncher, ZygoteLauncher
from batchcal.machine.allocator import PolicyName, resolve

PRELOAD: Final = ("torch", "torch.utils.data", "torch._dynamo", "numpy", "batchcal.measure.inside.child")
"""Modules imported before the first fork: torch._dynamo since the first optimizer step imports it (0.8 s)."""


def launched_under(allocator: PolicyName) -> PolicyName:
    """Return the policy whose environment a launcher of children under `allocator` needs."""
    return "default" if allocator == "retain" else allocator


class Launchers:
    """A zygote for each environment that policies need, if possible, else a launcher that spawns."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        note: Callable[[str], None],
        spawn_only: bool,
        left_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`left_s`: returns the seconds that a launcher may take to start."""
        self._left_s = left_s
        self._environ = dict(environ)
        self._note = note
        self._spawned: set[PolicyName] = set()
        """Policies under whose environment no zygote runs."""
        self._spawn_only = spawn_only or not hasattr(os, "pidfd_open")
        self.running: dict[PolicyName, Launcher] = {}
        """Started launchers, by the policy of their environment."""
        self._starting: dict[PolicyName, ZygoteLauncher] = {}

    def get(self, allocator: PolicyName) -> Launcher:
        """Return the launcher for `allocator`. Start it if it does not run."""
        name = launched_under(allocator)
        if name not in self.running:
            self.running[name] = self._start(name)
        return self.running[name]

    def running_for(self, allocator: PolicyName) -> Launcher | None:
        """Return the launcher for `allocator` if it runs."""
        return self.running.get(launched_under(allocator))

    def begin(self, allocators: Iterable[PolicyName]) -> None:
        """Start the launchers of all `allocators` in parallel, without waiting: most of a start is the import of torch, on one
        core."""
        for name in set(map(launched_under, allocators)):
            if name in self.running or name in self._starting or self._must_spawn(name):
                continue
            try:
                self._starting[name] = ZygoteLauncher(resolve(name), self._environ, PRELOAD)
            except GuardError as error:
                self._give_up(name, error)

    def start_all(self, allocators: Iterable[PolicyName]) -> None:
        """Start the launchers of all `allocators` in parallel, and wait for them."""
        names = tuple(allocators)
        self.begin(names)
        for name in names:
            self.get(name)

    def drop_starting(self) -> None:
        """Close the launchers that still start."""
        for launcher in self._starting.values():
            launcher.close()
        self._starting.clear()

    @property
    def are_starting(self) -> bool:
        """True if launchers were started by `begin` and are not in use yet: their memory may still grow."""
        return bool(self._starting)

    def missing(self, allocators: Iterable[PolicyName]) -> int:
        """Number of launchers for `allocators` that neither run nor start."""
        return len(set(map(launched_under, allocators)) - {*self.running, *self._starting})

    def keep_only(self, allocator: PolicyName) -> None:
        """Close all other launchers: an idle zygote holds memory that no training will hold."""
        for other in [name for name in (*self.running, *self._starting) if name != launched_under(allocator)]:
            self.drop(other)

    def drop(self, allocator: PolicyName) -> None:
        """Close the launcher of `allocator` if there is one."""
        name = launched_under(allocator)
        for launcher in (self.running.pop(name, None), self._starting.pop(name, None)):
            if launcher is not None:
                launcher.close()

    def close(self) -> None:
        """Close all launchers: none of their processes and files stay."""
        for launcher in (*self.running.values(), *self._starting.values()):
            launcher.close()
        self.running.clear()
        self._starting.clear()

    def environment(self, allocator: PolicyName) -> dict[str, str]:
        """Environment variables of a child under `allocator`."""
        return resolve(allocator).process_environment(self._environ)

    def _start(self, allocator: PolicyName) -> Launcher:
        policy = resolve(allocator)
        if not self._must_spawn(allocator):
            try:
                zygote = self._starting.pop(allocator, None) or ZygoteLauncher(policy, self._environ, PRELOAD)
                zygote.await_ready(self._left_s())
            except GuardError as error:
                self._give_up(allocator, error)
            else:
                return zygote
        return SpawnLauncher(policy, self._environ)

    def _must_spawn(self, allocator: PolicyName) -> bool:
        return self._spawn_only or allocator in self._spawned

    def _give_up(self, allocator: PolicyName, error: GuardError) -> None:
        self._note(f"{error.what}: {error.known}; every run under {allocator} starts a new process instead".strip())
        self._spawned.add(allocator)
