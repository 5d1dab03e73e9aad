"""Keys that sign calibrations, and the requirements of a reader on signatures.

A key beside the signed file, or in the image, protects against accidents, but not against users who may write the volume. A key
that a fleet shares (BATCHCAL_KEY_FILE, a secret mounted into each pod) protects against these users too.
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
"""128 bits: impossible to guess."""
MAX_BYTES: Final = 4096
_NEW_BYTES: Final = 32
"""The digest size of SHA-256; a longer key adds nothing (RFC 2104, section 3)."""
_FORBIDDEN_BITS: Final = stat.S_IWGRP | stat.S_IRWXO
"""A file that others may read is not a secret. The group may read: a Kubernetes secret under fsGroup is 0440 of root."""


@dataclass(frozen=True)
class Key:
    """A secret with its name. Never printed."""

    secret: bytes = field(repr=False)
    configured: bool
    """False: batchcal created it for this user, so that others are not expected to have it."""
    source: str

    @property
    def key_id(self) -> str:
        """Identifier of the key. It reveals nothing about the secret."""
        return hmac.new(self.secret, b"batchcal/v1 key-id", hashlib.sha256).hexdigest()[:16]

    def mac(self, purpose: str, data: bytes) -> str:
        """HMAC-SHA256 in hex. `purpose` prevents the reuse of a signature for another kind of data."""
        return hmac.new(self.secret, b"batchcal/v1 " + purpose.encode() + b"\n" + data, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Trust:
    """Our key, and the rule for files without a signature that we can check."""

    key: Key | None = None
    require_signature: bool = False

    @property
    def demands_signature(self) -> bool:
        """True if a signature is requested, or implied by a configured key."""
        return self.require_signature or (self.key is not None and self.key.configured)


def find_trust(environ: Mapping[str, str], *, require_signature: bool = False, folder: Path | None = None) -> Trust:
    """Return the trust of this process: BATCHCAL_KEY_FILE, else the user's own key if it exists. Does not create a key.

    Raises:
        UsageError: BATCHCAL_KEY_FILE names a file that cannot be used.
    """
    named = environ.get(KEY_FILE_VARIABLE)
    return Trust(key_from_file(Path(named).expanduser()) if named else own_key(folder), require_signature)


def find_or_make_trust(environ: Mapping[str, str], *, require_signature: bool = False, folder: Path | None = None) -> Trust:
    """Like `find_trust`, for a writer: create the user's own key if it does not exist and can be created.

    Raises:
        UsageError: BATCHCAL_KEY_FILE names a file that cannot be used.
    """
    trust = find_trust(environ, require_signature=require_signature, folder=folder)
    return trust if trust.key is not None else Trust(make_own_key(folder), require_signature)


def key_from_file(path: Path) -> Key:
    """Return the key that the user configured. Symlinks are followed, because Kubernetes mounts secrets as symlinks.

    Raises:
        UsageError: the file is missing, not ours, open to others, or shorter than 16 bytes.
    """
    command = f"(umask 077; head -c 32 /dev/urandom > {path})"
    try:
        secret = _read_secret(path.resolve(strict=True))
    except FileNotFoundError:
        raise UsageError(
            f"{KEY_FILE_VARIABLE} names a file that does not exist: {path}",
            known="it holds the key that signs calibrations and checks their signatures",
            try_=f"the correct path, or unset {KEY_FILE_VARIABLE}\n{command}    a new key",
        ) from None
    except (FileRefused, OSError, RuntimeError, ValueError) as error:  # RuntimeError: circular symlinks
        raise UsageError(
            f"the key file {path} cannot be used",
            known=str(error),
            try_=f"a key of your own: (umask 077; head -c 32 /dev/urandom > batchcal.key), {KEY_FILE_VARIABLE}=batchcal.key",
        ) from None
    return Key(secret, configured=True, source=str(path))


def own_key(folder: Path | None = None) -> Key | None:
    """Return the key that was created for this user. None: it does not exist, or is not usable."""
    path = _own_path(folder)
    try:
        return Key(_read_secret(path), configured=False, source=str(path))
    except (FileRefused, ValueError):
        return None


def make_own_key(folder: Path | None = None) -> Key | None:
    """Return the user's key, and create it if it does not exist. None: the folder is not writable, so nothing can be signed.

    If several processes create a key at the same time, one succeeds and the others read it: a link publishes the complete file.
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
    """Read a secret. Raises FileRefused for the file, ValueError for its content or its permissions."""
    secret, _, mode = read_guarded(path, max_bytes=MAX_BYTES)
    if sys.platform != "win32" and mode & _FORBIDDEN_BITS:
        raise ValueError(f"other users may read or write it (mode {mode:04o})")
    if len(secret) < MIN_BYTES:
        raise ValueError(f"it holds {len(secret)} bytes; a key needs at least {MIN_BYTES}")
    return secret
