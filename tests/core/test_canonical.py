"""One rendering, and a reader that refuses what two programs could read in two ways."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.core.canonical import JSON, MAX_DEPTH, BadJson, dumps, dumps_line, loads

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values: st.SearchStrategy[JSON] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)

HOSTILE = {
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "too-deep"),
    "deep objects": (b'{"a":' * 2_000 + b"1" + b"}" * 2_000, "too-deep"),
    "one level too deep": (b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1), "too-deep"),
    "an integer of 5000 digits": (b"9" * 5000, "number"),
    "an integer of 41 digits": (b"1" * 41, "number"),
    "NaN": (b'{"a":NaN}', "number"),
    "Infinity": (b"[Infinity]", "number"),
    "-Infinity": (b"[-Infinity]", "number"),
    "1e999": (b"[1e999]", "number"),
    "-1e400": (b"[-1e400]", "number"),
    "equal keys": (b'{"a":1,"b":2,"a":3}', "duplicate-key"),
    "equal keys, one escaped": (b'{"a":1,"\\u0061":3}', "duplicate-key"),
    "equal keys inside": (b'[{"x":{"a":1,"a":1}}]', "duplicate-key"),
    "UTF-8 with a mark": (b"\xef\xbb\xbf{}", "encoding"),
    "UTF-16": ("{}".encode("utf-16"), "encoding"),
    "UTF-16 without a mark": ('{"ü":1}'.encode("utf-16-le"), "encoding"),
    "UTF-16 of ASCII": (b"{\0}\0", "syntax"),
    "UTF-32": ("{}".encode("utf-32"), "encoding"),
    "Latin-1": ('{"ü":1}'.encode("latin-1"), "encoding"),
    "a raw surrogate": (b'"\xed\xa0\x80"', "encoding"),
    "half a surrogate pair": (b'["\\ud800"]', "surrogate"),
    "half a surrogate pair as key": (b'{"\\uDFFF":1}', "surrogate"),
    "50 MB": (b"[" + b"0," * 25_000_000 + b"0]", "too-large"),
    "nothing": (b"", "syntax"),
    "blanks": (b"  \n", "syntax"),
    "two values": (b"{} {}", "syntax"),
    "a comma too many": (b"[1,]", "syntax"),
    "a leading zero": (b"[01]", "syntax"),
    "single quotes": (b"{'a':1}", "syntax"),
    "a control character": (b'["\x01"]', "syntax"),
    "a NUL": (b'{"a":1}\0', "syntax"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_rejected_with_its_reason(name: str) -> None:
    data, reason = HOSTILE[name]

    with pytest.raises(BadJson) as refused:
        loads(data)

    assert refused.value.reason == reason
    assert str(refused.value)


@given(values)
@settings(deadline=None, database=None)
def test_a_json_value_is_read_back_unchanged_and_has_one_rendering(value: JSON) -> None:
    written = dumps(value)

    assert loads(written) == value
    assert dumps(loads(written)) == written
    assert json.loads(dumps_line(value)) == value


@given(st.binary(max_size=200))
@settings(deadline=None, database=None)
def test_any_bytes_are_read_or_raise_bad_json(data: bytes) -> None:
    try:
        value = loads(data)
    except BadJson:
        return
    dumps(value)


def test_the_order_of_keys_does_not_matter() -> None:
    assert dumps({"b": [1, 2.5], "a": {"d": None, "c": "ü"}}) == dumps({"a": {"c": "ü", "d": None}, "b": [1, 2.5]})


def test_dumps_indents_and_ends_with_a_newline() -> None:
    assert dumps({"b": [1, True], "a": "é"}) == '{\n "a": "é",\n "b": [\n  1,\n  true\n ]\n}\n'.encode()
    assert dumps_line({"b": [1, True], "a": "é"}) == '{"a":"é","b":[1,true]}'.encode()


def test_the_deepest_nesting_that_can_be_read_can_be_written() -> None:
    deepest = b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH

    assert dumps_line(loads(deepest)) == deepest


def test_a_complete_surrogate_pair_is_one_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "😀"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], "\ud800", {"\udfff": 1}])
def test_a_json_value_that_cannot_be_read_back_is_not_written(value: JSON) -> None:
    with pytest.raises(BadJson):
        dumps(value)


def test_a_value_with_too_deep_nesting_is_not_written() -> None:
    endless: list[JSON] = []
    for _ in range(100_000):
        endless = [endless]

    with pytest.raises(BadJson) as refused:
        dumps_line(endless)

    assert refused.value.reason == "too-deep"


def test_the_size_cap_can_be_set() -> None:
    assert loads(b"[1]", max_bytes=3) == [1]
    with pytest.raises(BadJson, match="4 bytes, more than 3"):
        loads(b"[12]", max_bytes=3)
