"""Digest and signature. The digest shows that the file is unchanged, the signature that a holder of the key vouches for it.

The signature covers the document without `digest` and `signature`; the digest covers the document with its signature, so that no
bit can change undetected. Both are computed over the parsed document, so that fields of a later version are covered too.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.stale import Stale
from batchcal.core.canonical import JSON, BadJson, dumps, dumps_line, loads

ALGORITHM: Final = "hmac-sha256"
_PURPOSE: Final = "calibration"


@dataclass(frozen=True)
class Unsealed:
    """A document with a valid seal."""

    payload: dict[str, JSON]
    """The document without `digest` and `signature`."""
    notices: tuple[str, ...]


def seal(payload: dict[str, JSON], *, key: Key | None) -> bytes:
    """Return the file's bytes: the canonical rendering of `payload` with its `signature` (null without a key) and `digest`.

    Raises:
        BadJson: the payload holds a value that JSON does not support.
    """
    signature: JSON = None
    if key is not None:
        signature = {"algorithm": ALGORITHM, "key_id": key.key_id, "value": key.mac(_PURPOSE, dumps_line(payload))}
    signed = payload | {"signature": signature}
    return dumps(signed | {"digest": _digest(signed)})


def unseal(data: bytes, *, kind: str, newest: int, trust: Trust) -> Unsealed | Stale:
    """Return the document in `data` if its kind is `kind`, its format is at most `newest` and its seal is valid. Never raises."""
    try:
        document = loads(data)
        if not isinstance(document, dict):
            return Stale(reason="malformed", detail="not a JSON object")
        return _unseal(document, data, kind=kind, newest=newest, trust=trust)
    except BadJson as error:
        return Stale(reason="malformed", detail=error.detail)


def _unseal(document: dict[str, JSON], data: bytes, *, kind: str, newest: int, trust: Trust) -> Unsealed | Stale:
    if document.get("kind") != kind:
        return Stale(reason="malformed", detail=f"not a {kind}: its kind is {_short(document.get('kind'))}")
    number = document.get("format")
    # isinstance() accepts a bool as an int.
    if type(number) is not int or number < 1:
        return Stale(reason="malformed", detail=f"its format is {_short(number)}")
    if number > newest:
        return Stale(reason="newer-format", detail=f"format {number}; this version reads up to {newest}")
    signed = {name: value for name, value in document.items() if name != "digest"}
    if not _same(document.get("digest"), _digest(signed)):
        return Stale(reason="bad-digest", detail="the file was changed after it was written")
    payload = {name: value for name, value in signed.items() if name != "signature"}
    verdict = _check_signature(signed.get("signature"), payload, trust)
    if isinstance(verdict, Stale):
        return verdict
    if dumps(document) != data:
        return Stale(reason="malformed", detail="the text is not in the form that batchcal writes")
    return Unsealed(payload, verdict)


def _check_signature(signature: JSON, payload: dict[str, JSON], trust: Trust) -> tuple[str, ...] | Stale:
    """Return notices, or the reason for the refusal."""
    if signature is None:
        if trust.demands_signature:
            return Stale(reason="unsigned", detail=f"it is not signed, and a signature is required{_because(trust)}")
        return ("the calibration is unsigned; its digest is correct",)
    if not isinstance(signature, dict) or signature.get("algorithm") != ALGORITHM:
        return Stale(reason="bad-signature", detail=f"the signature does not use {ALGORITHM}")
    key_id = signature.get("key_id")
    if trust.key is not None and key_id == trust.key.key_id:
        if _same(signature.get("value"), trust.key.mac(_PURPOSE, dumps_line(payload))):
            return ()
        return Stale(reason="bad-signature", detail=f"the signature with key {trust.key.key_id} is not valid")
    if trust.demands_signature:
        return Stale(reason="bad-signature", detail=f"signed with key {_short(key_id)}, which is not available{_because(trust)}")
    return (f"the calibration was signed with another key, {_short(key_id)}; its digest is correct",)


def _because(trust: Trust) -> str:
    if trust.key is not None and trust.key.configured:
        return f" (the available key {trust.key.key_id} is from {trust.key.source})"
    return ""


def _digest(signed: dict[str, JSON]) -> str:
    return "sha256:" + hashlib.sha256(dumps_line(signed)).hexdigest()


def _same(recorded: JSON, expected: str) -> bool:
    # As bytes: compare_digest raises an error for text outside ASCII.
    return isinstance(recorded, str) and hmac.compare_digest(recorded.encode(), expected.encode())


def _short(value: JSON) -> str:
    """The beginning of a foreign value, enough to recognize it, without control characters."""
    return repr(value)[:40]
