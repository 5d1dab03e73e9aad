"""Whatever bytes lie at the path, the reader answers with a value."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchcal.calibration.freshness import check
from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.seal import seal
from batchcal.calibration.stale import Stale
from batchcal.calibration.store import read
from batchcal.core.canonical import JSON, dumps
from tests.support.calibrations import MADE_AT, a_calibration, fingerprint

KEY = Key(b"the key that we made ourselves", configured=False, source="")
PAYLOAD: dict[str, JSON] = a_calibration().model_dump(mode="json")
SEALED = seal(PAYLOAD, key=KEY)

bounded = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
numbers = st.integers(-(10**39), 10**39) | st.floats(allow_nan=False, allow_infinity=False)
scalars = (
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.datetimes().map(str)
)
values: st.SearchStrategy[JSON] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(PAYLOAD)), inner, max_size=3),
    max_leaves=8,
)


def places(value: JSON, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to each value inside `value`."""
    inner: list[tuple[str | int, JSON]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    if isinstance(value, list):
        inner = list(enumerate(value))
    return [found for name, child in inner for found in [(*place, name), *places(child, (*place, name))]]


def replaced(value: JSON, place: tuple[str | int, ...], new: JSON) -> JSON:
    if not place:
        return new
    head, *rest = place
    if isinstance(value, dict):
        return {name: replaced(child, tuple(rest), new) if name == head else child for name, child in value.items()}
    assert isinstance(value, list)
    return [replaced(child, tuple(rest), new) if number == head else child for number, child in enumerate(value)]


def answered(data: bytes, trust: Trust) -> Stale | None:
    found = read(data, trust=trust)
    return found if isinstance(found, Stale) else check(found[0], fingerprint(), at=MADE_AT)


@given(st.binary(max_size=400))
@bounded
def test_random_bytes_are_rejected(data: bytes) -> None:
    assert isinstance(read(data, trust=Trust(KEY)), Stale)


@given(place=st.integers(0, len(SEALED)), length=st.integers(0, 50), new=st.binary(max_size=50))
@bounded
def test_any_splice_into_a_sealed_file_is_rejected(place: int, length: int, new: bytes) -> None:
    data = SEALED[:place] + new + SEALED[place + length :]

    assert data == SEALED or isinstance(read(data, trust=Trust(KEY)), Stale)


@given(place=st.sampled_from(places(PAYLOAD)), new=values)
@bounded
def test_any_value_in_a_sealed_document_is_read_without_an_exception(place: tuple[str | int, ...], new: JSON) -> None:
    payload = replaced(PAYLOAD, place, new)
    assert isinstance(payload, dict)

    for key in (KEY, None):
        answered(seal(payload, key=key), Trust(KEY))


@given(digest=values, signature=values)
@bounded
def test_an_arbitrary_digest_and_signature_are_stale(digest: JSON, signature: JSON) -> None:
    found = read(dumps(PAYLOAD | {"digest": digest, "signature": signature}), trust=Trust(KEY))

    assert isinstance(found, Stale)
