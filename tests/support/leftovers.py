"""What a test, or a whole calibration, leaves behind: processes, zombies, descriptors, names in /dev/shm, temporary files, links.

A process is ours when it descends from us or carries our token in the environment that it was started with: one whose parent
has died descends from nobody. Read from Linux's /proc; elsewhere only files are found.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Final

TOKEN: Final = "LEFTOVERS_TOKEN"
"""The environment variable by which orphans are found. Its value names who looks for them."""
PROC: Final = Path("/proc")
SHARED_MEMORY: Final = Path("/dev/shm")


@dataclass(frozen=True)
class Leftovers:
    """Each as text that a person can act on."""

    processes: frozenset[str] = frozenset()
    zombies: frozenset[str] = frozenset()
    descriptors: frozenset[str] = frozenset()
    shared_memory: frozenset[str] = frozenset()
    semaphores: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    """Symbolic links that point nowhere: locks of dead holders."""

    def beyond(self, before: Leftovers) -> Leftovers:
        """What is here and was not there `before`."""
        now, then = vars(self), vars(before)
        return Leftovers(**{kind: now[kind] - then[kind] for kind in now})

    def lines(self) -> list[str]:
        return [f"{kind}: {one}" for kind, names in vars(self).items() for one in sorted(names)]

    def counts(self) -> dict[str, int]:
        return {kind: len(names) for kind, names in vars(self).items()}


def look(*, token: str = "", directory: Path | None = None, project: Path | None = None) -> Leftovers:
    """What is there now.

    Args:
        token: the value of TOKEN that marks our processes.
        directory: the folder of temporary files, of which none may stay.
        project: a folder whose files may stay, but not its dangling links and partial files.
    """
    gc.collect()
    alive, dead = _processes(token)
    ours = {int(line.split()[0]) for line in alive | dead}
    return Leftovers(
        processes=frozenset(alive),
        zombies=frozenset(dead),
        descriptors=frozenset(_descriptors()),
        shared_memory=frozenset(_shared_memory(ours)),
        semaphores=frozenset(_semaphores(ours)),
        files=frozenset(_files(directory)) if directory is not None else frozenset(),
        links=frozenset(str(link) for folder in (directory, project) if folder is not None for link in _dangling(folder)),
    )


def settled(look_again: Callable[[], Leftovers], before: Leftovers, *, seconds: float = 1.0) -> Leftovers:
    """What is left beyond `before`, once nothing is or `seconds` have passed: what was killed takes some 50 ms to go."""
    until = time.monotonic() + seconds
    while True:
        left = look_again().beyond(before)
        if not left.lines() or time.monotonic() > until:
            return left
        time.sleep(0.02)


def _processes(token: str) -> tuple[set[str], set[str]]:
    """(alive, zombies), each `pid command`. multiprocessing's resource tracker lives as long as we do and is left out."""
    mark = f"{TOKEN}={token}".encode()
    parents: dict[int, int] = {}
    states: dict[int, str] = {}
    marked: set[int] = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            # `pid (name) state ppid ...`; the name may hold blanks and brackets.
            state, parent, *_ = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            parents[pid], states[pid] = int(parent), state
            if token and mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                marked.add(pid)
    alive: set[str] = set()
    dead: set[str] = set()
    for pid in parents:
        if pid == os.getpid() or not (pid in marked or os.getpid() in _ancestors(pid, parents)):
            continue
        with contextlib.suppress(OSError):
            command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if states[pid] in "ZX":
                dead.add(f"{pid} {(PROC / str(pid) / 'comm').read_text().strip()}")
            elif "multiprocessing.resource_tracker" not in command:
                alive.add(f"{pid} {command[:200]}")
    return alive, dead


def _pids() -> list[int]:
    return [int(path.name) for path in PROC.iterdir() if path.name.isdigit()] if PROC.is_dir() else []


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 0:
        yield pid


def _descriptors() -> set[str]:
    tracker = vars(resource_tracker).get("_resource_tracker")
    tracker_fd = vars(tracker).get("_fd") if tracker is not None else None
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else []:
        # The listing's own descriptor is gone by now.
        with contextlib.suppress(OSError):
            if int(name) != tracker_fd:
                found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")  # noqa: PTH115 - not every target is a path
    return found


def _shared_memory(ours: set[int]) -> set[str]:
    """Names of torch and of ours. A name that carries the id of a living process that is not ours is somebody else's."""
    found: set[str] = set()
    for path in SHARED_MEMORY.glob("*") if SHARED_MEMORY.is_dir() else []:
        if path.name.startswith("torch_"):
            pid = path.name.split("_")[1]
            if not (pid.isdigit() and (PROC / pid).exists() and int(pid) not in {*ours, os.getpid()}):
                found.add(path.name)
        elif "batchcal" in path.name and not path.name.startswith("sem."):
            found.add(path.name)
    return found


def _semaphores(ours: set[int]) -> set[str]:
    """Named semaphores that no living process uses, or one of ours. Those of another test's process are its own: where tests run
    beside each other, nothing shows which of them a dead process belonged to, and none is reported."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return set()
    names = {path.name for path in SHARED_MEMORY.glob("sem.*")} if SHARED_MEMORY.is_dir() else set()
    if not names:
        return names
    for pid in _pids():
        if pid not in {*ours, os.getpid()}:
            with contextlib.suppress(OSError):
                maps = (PROC / str(pid) / "maps").read_text(errors="replace")
                names = {name for name in names if name not in maps}
    return names


def _dangling(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() and not path.exists()]


def _files(directory: Path) -> set[str]:
    """torch's own compile cache, which it makes when its first optimizer is made, is not ours to remove."""
    found = {path.relative_to(directory) for path in directory.rglob("*")}
    return {str(path) for path in found if not path.parts[0].startswith("torchinductor_")}
