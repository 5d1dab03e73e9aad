"""Identity of a worker, and whether it still runs: by its process, which only its machine can check, and by a lock file."""

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
"""File systems of one machine. A lock on them holds for all processes that see the file, in any container. File systems of a
network or of a virtual machine's host may not share locks: a lock that looks free there means nothing."""

LOOK_S: Final = 1.0
"""Seconds to wait for another process that checks whether the lock is held, which takes a moment."""


@contextlib.contextmanager
def present(worker: str, presences: Path | None) -> Iterator[None]:
    """Hold the lock of `worker` in this context, or until the process dies.

    A recreated container has another host name and other pids: its dead workers would look like those of another machine. The
    files on a volume, the journal and this lock, are still there. If no lock is available, other workers leave its trials alone.

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
                # A process that sweeps may check the file, or remove it, before it is held.
                while lock.acquire(wait_s=LOOK_S).state == "held" and not path.exists():
                    lock.release()
        yield
        # Only after a normal end: a worker that was stopped may have a trial whose end was not recorded.
        forget(worker, presences)


def sweep(presences: Path | None, workers: Iterable[str]) -> None:
    """Remove the locks of workers that are gone, except those of `workers`."""
    if presences is None:
        return
    excluded = {_file(presences, worker) for worker in workers}
    with contextlib.suppress(OSError):
        for path in presences.glob("*.lock"):
            if path not in excluded and _is_abandoned(path):
                path.unlink(missing_ok=True)


def identity() -> str:
    """Return the identity of this process, unique for all time on all machines: host, boot, pid namespace, pid, start."""
    return ":".join([socket.gethostname(), *_boot_and_namespace(), str(os.getpid()), _start_of(os.getpid())])


def has_ended(worker: str, presences: Path | None) -> bool:
    """Return True if the process of `worker` has ended, False if it runs or this is unknown.

    Args:
        presences: folder of the workers' locks. None: they have none.
    """
    return _is_dead(worker) or (presences is not None and _is_abandoned(_file(presences, worker)))


def forget(worker: str, presences: Path | None) -> None:
    """Remove the lock of a worker that is gone and whose trials were handled."""
    if presences is not None:
        with contextlib.suppress(OSError):
            _file(presences, worker).unlink(missing_ok=True)


def _file(folder: Path, worker: str) -> Path:
    return folder / f"{hashlib.sha256(worker.encode()).hexdigest()[:16]}.lock"


def _is_abandoned(path: Path) -> bool:
    """Return True if the lock exists and no process holds it, on a file system where this means something."""
    if not path.is_file() or file_system_of(path) not in LOCKING:
        return False
    with Lock(path) as lock:
        return lock.acquire(wait_s=0).state == "held"


def file_system_of(path: Path) -> str:
    """Return the type of the file system of `path`, such as `ext4`. Empty: unknown."""
    place = path.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if place.is_relative_to(PurePath(mount.mountpoint))]
    # The last mount at a place hides the earlier ones.
    return max(enumerate(mounts), key=lambda item: (len(item[1].mountpoint), item[0]))[1].fstype if mounts else ""


def _is_dead(worker: str) -> bool:
    """Return True if its process is gone. False if this is unknown here: the worker is of another container or machine, or of
    this machine before a restart. Another machine of the same name would look like the latter."""
    _, boot, space, pid, start = (worker.rsplit(":", 4) + [""] * 5)[:5]
    return (boot, space) == _boot_and_namespace() and pid.isdigit() and _start_of(int(pid)) != start


def _boot_and_namespace() -> tuple[str, str]:
    """Return the current boot of the machine and the pid namespace of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
        return boot, str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return f"{psutil.boot_time():.0f}", ""


def _start_of(pid: int) -> str:
    """Return the start of process `pid`, in ticks that clock changes do not affect. Empty: it has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        return "" if Path("/proc/self/stat").exists() else f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""
