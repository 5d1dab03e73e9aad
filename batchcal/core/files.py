"""Writes that survive a kill, and reads that do not trust paths.

Measured: a write of 15 KB with both fsyncs takes 0.5 ms. 1,000 kills of a writer leave about 270 temporary files. Later writes
remove them when they are an hour old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from batchcal.core.errors import UsageError

RefusedReason = Literal["missing", "not-regular", "foreign-owner", "world-writable", "too-large", "unreadable"]

LEFTOVER_AGE_S: Final = 3600.0
"""Seconds. An older temporary file of ours belongs to a killed writer: no write takes an hour."""
_SUFFIX: Final = ".batchcal-tmp"
_HEAD_BYTES: Final = 4 << 20
"""Bytes read from a file to recognize its kind: the maximum size of a calibration."""
_TRIAL_BYTES: Final = 64 << 10
"""Size of a trial file, bytes. Calibrations of the examples hold 15 to 50 KB."""
_ONLY_OURS: Final = "batchcal replaces only files that it wrote itself"
_WHY_NOT_WRITTEN: Final[dict[int, str]] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EPERM: "the folder may not be written",
    errno.ENOENT: "no file can be created in that folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EBUSY: "the file is a mount point and cannot be replaced; mount its folder instead",
    errno.EXDEV: "the file is a mount point and cannot be replaced; mount its folder instead",
}

# Absent on Windows, where opening a file follows other rules.
_NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)
_CLOEXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
_BINARY: Final[int] = getattr(os, "O_BINARY", 0)


class FileRefused(Exception):
    """A file that is not read. `reason` is for programs, `detail` for people."""

    def __init__(self, reason: RefusedReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RefusedReason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Guarded(NamedTuple):
    """Result of `read_guarded`."""

    data: bytes
    notices: tuple[str, ...]
    """Accepted conditions that the user should know: a group may write the file, any user may write its folder."""
    mode: int
    """Permission bits."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`. A reader gets the old bytes or the new bytes, also after a kill or a power cut.

    Write a temporary file beside it (`mode` less the umask), fsync it, rename it, and fsync the folder. A symlink at `path` is
    replaced, not followed. Temporary files of killed writers that are over an hour old are removed.

    Raises:
        OSError: nothing was replaced (disk full, read-only, no permission, EBUSY at a bind-mounted file), or, after the rename,
            the folder could not be made durable. There is no fallback to writing in place.
    """
    _collect_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC | _BINARY, mode)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:  # a signal may come at any line
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`. One system call may write only a part."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable.

    Raises:
        OSError: the disk failed. Not raised for file systems that cannot do it (EINVAL).
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def leftovers(path: Path) -> Iterator[Path]:
    """Temporary files of writers of `path`, both killed and running."""
    with contextlib.suppress(OSError):
        for name in path.parent.iterdir():
            if name.name.startswith(f".{path.name}.") and name.name.endswith(_SUFFIX):
                yield name


def _collect_leftovers(path: Path) -> None:
    now = time.time()
    for name in leftovers(path):
        with contextlib.suppress(OSError):
            status = name.lstat()
            if stat.S_ISREG(status.st_mode) and _is_ours(status) and now - status.st_mtime > LEFTOVER_AGE_S:
                name.unlink()


def read_guarded(path: Path, *, max_bytes: int) -> Guarded:
    """Return the bytes of a regular file that we or root own and that is not world-writable.

    Never blocks (a FIFO, a device), never follows a symlink at `path` itself, reads at most `max_bytes`. A group-writable file
    is accepted with a notice (Kubernetes' fsGroup). So is a world-writable folder: a user who replaces the file there becomes its
    owner.

    Raises:
        FileRefused: with the reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NOFOLLOW | _NONBLOCK | _CLOEXEC | _BINARY)
    except (FileNotFoundError, NotADirectoryError):
        raise FileRefused("missing", f"{path} does not exist") from None
    except ValueError as error:  # a NUL in the name
        raise FileRefused("unreadable", f"{str(path)!r}: {error}") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EMLINK} and path.is_symlink():
            raise FileRefused("not-regular", f"{path} is a symbolic link") from None
        if error.errno in {errno.ENXIO, errno.ENODEV}:
            raise FileRefused("not-regular", f"{path} is not a regular file") from None
        raise FileRefused("unreadable", f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        notices = _check(path, status, max_bytes)
        data = _read_all(descriptor, max_bytes)
    except OSError as error:
        raise FileRefused("unreadable", f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return Guarded(data, notices, stat.S_IMODE(status.st_mode))


def _check(path: Path, status: os.stat_result, max_bytes: int) -> tuple[str, ...]:
    if not stat.S_ISREG(status.st_mode):
        raise FileRefused("not-regular", f"{path} is not a regular file")
    if not _is_ours(status):
        raise FileRefused("foreign-owner", f"{path} belongs to user {status.st_uid}, not to the current user or root")
    if sys.platform != "win32" and status.st_mode & stat.S_IWOTH:
        raise FileRefused("world-writable", f"every user may write {path} (mode {stat.S_IMODE(status.st_mode):04o})")
    if status.st_size > max_bytes:
        raise FileRefused("too-large", f"{path} has {status.st_size} bytes, more than {max_bytes}")
    notices = []
    if sys.platform != "win32":
        if status.st_mode & stat.S_IWGRP:
            notices.append(f"group {status.st_gid} may write {path}")
        folder = path.parent.stat().st_mode
        if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
            notices.append(f"every user may write the folder {path.parent}")
    return tuple(notices)


def _read_all(descriptor: int, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    remaining = max_bytes + 1
    while remaining > 0 and (chunk := os.read(descriptor, remaining)):
        chunks.append(chunk)
        remaining -= len(chunk)
    if remaining <= 0:  # the file grew while it was read
        raise FileRefused("too-large", f"more than {max_bytes} bytes")
    return b"".join(chunks)


def _is_ours(status: os.stat_result) -> bool:
    return sys.platform == "win32" or status.st_uid in {os.geteuid(), 0}


def check_target(
    path: Path,
    *,
    name: str,
    document: str,
    is_ours: Callable[[bytes], bool],
    example: str,
    special: bool = False,
    instead: str = "",
) -> None:
    """Check, before any measurement, that `path` can be written and that no file of the user would be replaced.

    Args:
        name: the user's name for the setting: `--output`, `BATCHCAL_CALIBRATION`, `x.toml [train] log`.
        document: the kind of document that will be written, such as `a calibration`.
        is_ours: returns True if the first bytes of a file are of this kind. An empty file may always be replaced.
        example: a file name to suggest.
        instead: suggestion in place of another file name.
        special: accept a pipe or a device, because it is written to and not replaced.

    Raises:
        UsageError: `path` is a folder, a link or a file of another kind, or it cannot be written.
    """
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _check_folder(path, name, example)
        return
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} {path} cannot be used: {why_not_written(error)}", try_=_typed(name, example)) from None
    if stat.S_ISDIR(kind):
        raise UsageError(f"{name} {path} is a folder", known=f"{document} is a file", try_=_typed(name, path / example))
    if special and stat.S_ISLNK(kind):
        path, kind = _target_of(path, kind)  # such as /dev/stdout
    if special and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind) and not stat.S_ISLNK(kind):
        return
    if stat.S_ISLNK(kind) and not special:
        raise UsageError(
            f"{name} {path} is a symbolic link", known="writing would replace the link", try_=_typed(name, path.resolve())
        )
    if not stat.S_ISREG(kind):
        raise UsageError(f"{name} {path} is not a regular file", try_=_typed(name, example))
    if special and not os.access(path, os.W_OK):
        raise UsageError(
            f"{name} {path} cannot be written",
            known="it is read only, or the user has no permission to write it",
            try_=_typed(name, example),
        )
    try:
        with path.open("rb") as file:
            begin = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(
            f"{name} {path} cannot be read: {why_not_written(error)}", known=_ONLY_OURS, try_=f"{name} {example}"
        ) from None
    if begin and not is_ours(begin):
        raise UsageError(
            f"{name} {path} is an existing file that is not {document}",
            known=_ONLY_OURS,
            try_=instead or f"{_typed(name, _sibling(path, example))}, or move {path.name} away first",
        )
    if _is_mounted(path):
        raise UsageError(
            f"{name} {path} cannot be written: {_WHY_NOT_WRITTEN[errno.EBUSY]}",
            known="nothing was measured yet",
            try_=f"mount the folder {path.parent} instead of the file",
        )
    _check_folder(path, name, example)


def _target_of(path: Path, kind: int) -> tuple[Path, int]:
    """Follow a link. Return the file and its mode; `path` and `kind` for a link to nothing, or to a place that cannot be read."""
    try:
        return path.resolve(), path.stat().st_mode
    except (OSError, RuntimeError):
        return path, kind


def _is_mounted(path: Path) -> bool:
    """True if the file is a mount, as from `docker run -v FILE:FILE`. Such a file cannot be replaced."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    name = str(path.absolute()).replace(" ", "\\040")
    return any(line.split(" ")[4:5] == [name] for line in mounts)


def _check_folder(path: Path, name: str, example: str) -> None:
    """Raise UsageError if a file as large as ours cannot be written beside `path`."""
    trial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with trial.open("xb") as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{name} {path} cannot be written: {why_not_written(error)}",
            known="nothing was measured yet",
            try_=f"{_typed(name, Path(tempfile.gettempdir()) / example)}, or another folder that can be written",
        ) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            trial.unlink(missing_ok=True)


def _typed(name: str, value: Path | str) -> str:
    """`--output FILE`, `BATCHCAL_CALIBRATION=FILE`."""
    return f"{name} {value}" if name.startswith("--") else f"{name}={value}" if name.isupper() else f"{value} as {name}"


def _sibling(path: Path, example: str) -> Path:
    """An unused name beside `path`."""
    other = path.with_name(example)
    return other if other != path and not other.exists() else path.with_name(f"batchcal-{example}")


def why_not_written(error: OSError | ValueError) -> str:
    """Reason for a failed write, in words that show what to change."""
    if isinstance(error, OSError):
        return _WHY_NOT_WRITTEN.get(error.errno or 0, error.strerror or str(error))
    return str(error)
