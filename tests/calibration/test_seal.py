"""No bit of a calibration changes unseen, and who may vouch for it follows the policy."""

from __future__ import annotations

import hashlib
import json

import pytest

from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.schema import FORMAT, Calibration
from batchcal.calibration.seal import seal
from batchcal.calibration.stale import Stale
from batchcal.calibration.store import read
from batchcal.core.canonical import JSON, BadJson, dumps, dumps_line, loads
from tests.support.calibrations import a_calibration

FLEET = Key(b"the key that a fleet shares", configured=True, source="/run/secrets/key")
OWN = Key(b"the key that we made ourselves", configured=False, source="~/.config/batchcal/key")
OTHER = Key(b"the key of another container", configured=False, source="/elsewhere")
SMALL = a_calibration(measurements=(), findings=(), budgets=(), facts=None, notes=())


def sealed(calibration: Calibration, key: Key | None) -> bytes:
    return seal(calibration.model_dump(mode="json"), key=key)


def reason(data: bytes, trust: Trust) -> str:
    found = read(data, trust=trust)
    assert isinstance(found, Stale), "was accepted"
    assert found.detail
    return found.reason


def notices(data: bytes, trust: Trust) -> tuple[str, ...]:
    found = read(data, trust=trust)
    assert not isinstance(found, Stale), str(found)
    return found[1]


def changed(data: bytes, **fields: JSON) -> bytes:
    """The file with fields replaced and nothing sealed anew, written as batchcal writes."""
    document = loads(data)
    assert isinstance(document, dict)
    return dumps(document | fields)


def with_signature(payload: dict[str, JSON], signature: JSON) -> bytes:
    """`payload` with this signature and the digest that is right for it, as a stranger would make it."""
    document = payload | {"signature": signature}
    return dumps(document | {"digest": "sha256:" + hashlib.sha256(dumps_line(document)).hexdigest()})


def resealed(**fields: JSON) -> bytes:
    """A file whose seal holds, whatever is in it."""
    payload: dict[str, JSON] = SMALL.model_dump(mode="json")
    return seal(payload | fields, key=OWN)


def test_a_sealed_calibration_is_read_back_unchanged() -> None:
    whole = a_calibration()

    assert read(sealed(whole, OWN), trust=Trust(OWN)) == (whole, ())
    assert read(sealed(whole, None), trust=Trust()) == (whole, ("the calibration is unsigned; its digest is correct",))


def test_a_file_truncated_at_any_byte_is_rejected() -> None:
    data = sealed(SMALL, OWN)

    reasons = {reason(data[:length], Trust(OWN)) for length in range(len(data))}

    assert reasons == {"malformed"}


def test_every_single_flipped_bit_is_detected() -> None:
    data = bytearray(sealed(SMALL, OWN))
    trust = Trust(OWN)
    accepted = []
    for place in range(len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            if not isinstance(read(bytes(data), trust=trust), Stale):
                accepted.append((place, bit))
            data[place] ^= 1 << bit

    assert accepted == []
    assert not isinstance(read(bytes(data), trust=trust), Stale)


@pytest.mark.parametrize(
    ("signer", "trust", "answer"),
    [
        (FLEET, Trust(FLEET), ""),
        (OWN, Trust(OWN), ""),
        (OWN, Trust(OWN, require_signature=True), ""),
        (OTHER, Trust(OWN), "signed with another key"),
        (OTHER, Trust(), "signed with another key"),
        (None, Trust(OWN), "unsigned"),
        (None, Trust(), "unsigned"),
    ],
)
def test_a_file_with_an_unverified_signature_is_accepted_with_a_notice(signer: Key | None, trust: Trust, answer: str) -> None:
    told = " ".join(notices(sealed(SMALL, signer), trust))

    assert answer in told
    assert bool(told) == bool(answer)


@pytest.mark.parametrize(
    ("signer", "trust", "answer"),
    [
        (OWN, Trust(FLEET), "bad-signature"),
        (OTHER, Trust(FLEET), "bad-signature"),
        (OTHER, Trust(OWN, require_signature=True), "bad-signature"),
        (OTHER, Trust(None, require_signature=True), "bad-signature"),
        (None, Trust(FLEET), "unsigned"),
        (None, Trust(OWN, require_signature=True), "unsigned"),
        (None, Trust(None, require_signature=True), "unsigned"),
    ],
)
def test_a_configured_key_or_required_signature_rejects_other_signers(signer: Key | None, trust: Trust, answer: str) -> None:
    assert reason(sealed(SMALL, signer), trust) == answer


@pytest.mark.parametrize("trust", [Trust(OWN), Trust(OWN, require_signature=True)])
def test_a_forged_signature_with_our_key_id_is_always_rejected(trust: Trust) -> None:
    payload: dict[str, JSON] = SMALL.model_dump(mode="json")
    lie = with_signature(payload, {"algorithm": "hmac-sha256", "key_id": OWN.key_id, "value": "0" * 64})

    assert reason(lie, trust) == "bad-signature"


@pytest.mark.parametrize(
    "signature",
    [
        "a text",
        [],
        {},
        {"algorithm": "none", "key_id": OWN.key_id, "value": ""},
        {"algorithm": "hmac-sha256", "key_id": OWN.key_id},
        {"algorithm": "hmac-sha256", "key_id": OWN.key_id, "value": "ümläut"},
        {"algorithm": "hmac-sha256", "key_id": OWN.key_id, "value": 7},
    ],
)
def test_a_malformed_signature_is_a_bad_signature(signature: JSON) -> None:
    assert reason(with_signature(SMALL.model_dump(mode="json"), signature), Trust(OWN)) == "bad-signature"


def test_an_edited_field_makes_the_digest_invalid() -> None:
    data = sealed(SMALL, OWN)

    assert reason(changed(data, status="partial"), Trust(OWN)) == "bad-digest"
    assert reason(changed(data, invented=1), Trust(OWN)) == "bad-digest"
    assert reason(changed(data, signature=None), Trust(OWN)) == "bad-digest"
    assert [reason(changed(data, digest=odd), Trust(OWN)) for odd in (None, 7, "", "sha256:ü")] == ["bad-digest"] * 4


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"format": FORMAT + 1}, "newer-format"),
        ({"format": 10**30}, "newer-format"),
        ({"format": 0}, "malformed"),
        ({"format": -1}, "malformed"),
        ({"format": True}, "malformed"),
        ({"format": 1.0}, "malformed"),
        ({"format": "1"}, "malformed"),
        ({"kind": "plan"}, "malformed"),
        ({"kind": None}, "malformed"),
        ({"status": "perfect"}, "malformed"),
        ({"created_at": "2026-07-01T12:00:00"}, "malformed"),
        ({"created_at": 0}, "malformed"),
        ({"wall_s": "3"}, "malformed"),
        ({"effective_batch": True}, "malformed"),
        ({"effective_batch": 1.5}, "malformed"),
        ({"effective_batch": 2**40}, "malformed"),
        ({"findings": None}, "malformed"),
        ({"environment": {}}, "malformed"),
    ],
)
def test_a_sealed_file_with_invalid_content_is_rejected_with_a_reason(fields: dict[str, JSON], answer: str) -> None:
    assert reason(resealed(**fields), Trust(OWN)) == answer


@pytest.mark.parametrize("size", [0, -5, 2**31 + 1, True, 512.0])
def test_an_impossible_batch_size_is_rejected(size: JSON) -> None:
    payload: dict[str, JSON] = a_calibration().model_dump(mode="json")
    findings = payload["findings"]
    assert isinstance(findings, list)
    assert isinstance(findings[0], dict)
    train = findings[0]["train"]
    assert isinstance(train, dict)
    train["batch"] = size

    assert reason(seal(payload, key=OWN), Trust(OWN)) == "malformed"


def test_a_newer_format_is_reported_before_its_seal_is_checked() -> None:
    assert reason(dumps({"kind": "calibration", "format": 3, "seal": "of another kind"}), Trust(OWN)) == "newer-format"


def test_the_same_document_with_other_formatting_is_rejected() -> None:
    data = sealed(SMALL, OWN)
    document: object = json.loads(data)
    variants = [
        json.dumps(document).encode(),
        json.dumps(document, indent=1, sort_keys=True).encode(),
        data + b"\n",
        b" " + data,
        data.replace(b"\n", b"\r\n"),
        data.replace(b'"Linux 6.18.44"', b'"\\u004cinux 6.18.44"'),
        data.replace(b'"margin": 0.15', b'"margin": 15e-2'),
    ]

    assert [reason(variant, Trust(OWN)) for variant in variants] == ["malformed"] * len(variants)


@pytest.mark.parametrize("data", [b"[]", b"null", b"7", b'"text"', b"{}", b"", b"\0" * 100, b"{" * 5000])
def test_other_json_documents_are_malformed_calibrations(data: bytes) -> None:
    assert reason(data, Trust()) == "malformed"


def test_fields_of_a_later_version_are_preserved_by_a_round_trip() -> None:
    payload: dict[str, JSON] = a_calibration().model_dump(mode="json")
    later: dict[str, JSON] = {"new": [1, 2.5, None, {"ü": "😀", "big": 2**64, "small": 1e-7, "minus": -0.0}], "newer": True}
    payload["later"] = dict(later)
    environment, measurements = payload["environment"], payload["measurements"]
    assert isinstance(environment, dict)
    assert isinstance(measurements, list)
    environment["later"] = dict(later)
    first = measurements[0]
    assert isinstance(first, dict)
    outcome = first["outcome"]
    assert isinstance(outcome, dict)
    outcome["later"] = dict(later)
    data = seal(payload, key=OWN)

    found = read(data, trust=Trust(OWN))

    assert not isinstance(found, Stale)
    assert sealed(found[0], OWN) == data


def test_a_value_that_cannot_be_read_back_is_not_sealed() -> None:
    with pytest.raises(BadJson):
        seal({"kind": "calibration", "wall_s": float("nan")}, key=None)
