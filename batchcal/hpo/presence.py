"""Who a worker is, and whether it still is: what nobody but the machine it runs on can tell, and a lock beside the journal."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Final

import psutil

from batchcal.core.lock import Lock

LOCKING: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs", "hfs", "ufs"})
"""File systems of one machine, on which a lock holds for all who see the file, in whatever container. Those of a network, or of a
virtual machine's host, may keep locks to themselves: one that looks free there tells nothing."""

LOOK_S: Final = 1.0
"""For another who looks whether the lock is held, which takes a moment."""


@contextlib.contextmanager
def present(worker: str, presences: Path | None) -> Iterator[None]:
    """Holds the lock of `worker` meanwhile, or until the process dies.

    A container that is made anew has another host name and other pids: its dead workers could not be told from those of another
    machine. What was on a volume, the journal and this, is still there. Where no lock can be had, others leave its trials alone.

    Args:
        presences: folder of the workers' locks. None: they need none.
    """
    if presences is None:
        yield
        return
    path = _file(presences, worker)
    with Lock(path) as lock:
        with contextlib.suppress(OSError):
            presences.mkdir(parents=True, exist_ok=True)
            if file_system_of(presences) in LOCKING:
                # Who sweeps may look at the file, or remove it, before it is held.
                while lock.acquire(wait_s=LOOK_S).state == "held" and not path.exists():
                    lock.release()
        yield
        # Only here: one that was stopped may have a trial that nobody was told of.
        forget(worker, presences)


def sweep(presences: Path | None, workers: Iterable[str]) -> None:
    """Removes the locks of who is gone, but for those of `workers`."""
    if presences is None:
        return
    kept = {_file(presences, worker) for worker in workers}
    with contextlib.suppress(OSError):
        for path in presences.glob("*.lock"):
            if path not in kept and _has_left(path):
                path.unlink(missing_ok=True)


def identity() -> str:
    """This process among all there ever were on all machines: host, boot, space of pids, pid, start."""
    return ":".join([socket.gethostname(), *_here(), str(os.getpid()), _start_of(os.getpid())])


def is_gone(worker: str, presences: Path | None) -> bool:
    """Whether the process of `worker` has ended. False where nobody can tell.

    Args:
        presences: folder of the workers' locks. None: they have none.
    """
    return _is_dead(worker) or (presences is not None and _has_left(_file(presences, worker)))


def forget(worker: str, presences: Path | None) -> None:
    """Of one that is gone, and whose trials were seen to."""
    if presences is not None:
        with contextlib.suppress(OSError):
            _file(presences, worker).unlink(missing_ok=True)


def _file(folder: Path, worker: str) -> Path:
    return folder / f"{hashlib.sha256(worker.encode()).hexdigest()[:16]}.lock"


def _has_left(path: Path) -> bool:
    """Whether there is a lock which nobody holds, where that means something."""
    if not path.is_file() or file_system_of(path) not in LOCKING:
        return False
    with Lock(path) as lock:
        return lock.acquire(wait_s=0).state == "held"


def file_system_of(path: Path) -> str:
    """Its type, such as `ext4`; empty where that is not known."""
    place = path.resolve()
    mounts = [one for one in psutil.disk_partitions(all=True) if place.is_relative_to(PurePath(one.mountpoint))]
    # What was mounted last covers what was mounted at the same place before.
    return max(enumerate(mounts), key=lambda one: (len(one[1].mountpoint), one[0]))[1].fstype if mounts else ""


def _is_dead(worker: str) -> bool:
    """Whether its process is gone. False where nobody here can tell: it is of another container, another machine, or of this one
    before it was started anew, which another machine of the same name would look like."""
    _, boot, space, pid, began = (worker.rsplit(":", 4) + [""] * 5)[:5]
    return (boot, space) == _here() and pid.isdigit() and _start_of(int(pid)) != began


def _here() -> tuple[str, str]:
    """This boot of the machine, and the space in which our pids mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
        return boot, str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return f"{psutil.boot_time():.0f}", ""


def _start_of(pid: int) -> str:
    """When process `pid` began, in ticks that no change of the clock moves. Empty: it is gone, if not reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        return "" if Path("/proc/self/stat").exists() else f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""
