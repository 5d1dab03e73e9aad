"""Keys that sign calibrations, and what a reader asks of a signature.

A key beside the file it signs, or in the image, protects from accidents, not from whoever may write the volume. A key that
a fleet shares (BATCHCAL_KEY_FILE, a secret mounted into each pod) protects from those too.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from batchcal.core.errors import UsageError
from batchcal.core.files import FileRefused, read_guarded, write_all

KEY_FILE_VARIABLE: Final = "BATCHCAL_KEY_FILE"
MIN_BYTES: Final = 16
"""128 bits: what nobody guesses."""
MAX_BYTES: Final = 4096
_NEW_BYTES: Final = 32
"""The digest size of SHA-256; a longer key adds nothing (RFC 2104, section 3)."""
_FORBIDDEN_BITS: Final = stat.S_IWGRP | stat.S_IRWXO
"""A secret that others may read is none. The group may read: a Kubernetes secret under fsGroup is 0440 of root."""


@dataclass(frozen=True)
class Key:
    """A secret with its name. Never printed."""

    secret: bytes = field(repr=False)
    configured: bool
    """False: made by us for this user, so that others cannot be expected to have it."""
    source: str

    @property
    def key_id(self) -> str:
        """Tells keys apart without telling anything about them."""
        return hmac.new(self.secret, b"batchcal/v1 key-id", hashlib.sha256).hexdigest()[:16]

    def mac(self, purpose: str, data: bytes) -> str:
        """HMAC-SHA256 in hex. `purpose` keeps what was signed as one thing from being shown as another."""
        return hmac.new(self.secret, b"batchcal/v1 " + purpose.encode() + b"\n" + data, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Trust:
    """Which key is ours, and whether files without a signature that we can check are taken."""

    key: Key | None = None
    require_signature: bool = False

    @property
    def demands_signature(self) -> bool:
        """Asked for, or implied by a configured key."""
        return self.require_signature or (self.key is not None and self.key.configured)


def find_trust(environ: Mapping[str, str], *, require_signature: bool = False, folder: Path | None = None) -> Trust:
    """The trust of this process: BATCHCAL_KEY_FILE, else the user's own key where there is one; makes none.

    Raises:
        UsageError: BATCHCAL_KEY_FILE names a file that cannot be used.
    """
    named = environ.get(KEY_FILE_VARIABLE)
    return Trust(key_from_file(Path(named).expanduser()) if named else own_key(folder), require_signature)


def find_or_make_trust(environ: Mapping[str, str], *, require_signature: bool = False, folder: Path | None = None) -> Trust:
    """As `find_trust`, for a writer: the user's own key is made where there is none and it can be made.

    Raises:
        UsageError: BATCHCAL_KEY_FILE names a file that cannot be used.
    """
    found = find_trust(environ, require_signature=require_signature, folder=folder)
    return found if found.key is not None else Trust(make_own_key(folder), require_signature)


def key_from_file(path: Path) -> Key:
    """The key that the user configured. Symlinks are followed: that is how Kubernetes mounts secrets.

    Raises:
        UsageError: missing, not ours, open to others, or shorter than 16 bytes.
    """
    make_one = f"(umask 077; head -c 32 /dev/urandom > {path})"
    try:
        secret = _read_secret(path.resolve(strict=True))
    except FileNotFoundError:
        raise UsageError(
            f"{KEY_FILE_VARIABLE} names a file that does not exist: {path}",
            known="it holds the key that signs calibrations and checks their signatures",
            try_=f"the correct path, or unset {KEY_FILE_VARIABLE}\n{make_one}    a new key",
        ) from None
    except (FileRefused, OSError, RuntimeError, ValueError) as error:  # RuntimeError: symlinks in a circle
        raise UsageError(
            f"the key file {path} cannot be used",
            known=str(error),
            try_=f"a key of your own: (umask 077; head -c 32 /dev/urandom > batchcal.key), {KEY_FILE_VARIABLE}=batchcal.key",
        ) from None
    return Key(secret, configured=True, source=str(path))


def own_key(folder: Path | None = None) -> Key | None:
    """The key that was made for this user. None: there is none, or it is not fit to be used."""
    path = _own_path(folder)
    try:
        return Key(_read_secret(path), configured=False, source=str(path))
    except (FileRefused, ValueError):
        return None


def make_own_key(folder: Path | None = None) -> Key | None:
    """The user's key, made where there is none. None: the folder cannot be written, then nothing can be signed.

    Of several processes that make one at a time, one wins and the others read it: the file appears whole, by a link.
    """
    path = _own_path(folder)
    temporary = path.with_name(f".key.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(descriptor, secrets.token_bytes(_NEW_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError:
        return own_key(folder)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return own_key(folder)


def _own_path(folder: Path | None) -> Path:
    if folder is None:
        import platformdirs

        folder = platformdirs.user_config_path("batchcal", appauthor=False)
    return folder / "key"


def _read_secret(path: Path) -> bytes:
    """Raises FileRefused for the file, ValueError for what is in it or who may see it."""
    secret, _, mode = read_guarded(path, max_bytes=MAX_BYTES)
    if sys.platform != "win32" and mode & _FORBIDDEN_BITS:
        raise ValueError(f"others may read or write it (mode {mode:04o})")
    if len(secret) < MIN_BYTES:
        raise ValueError(f"it holds {len(secret)} bytes; a key needs at least {MIN_BYTES}")
    return secret
