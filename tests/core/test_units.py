"""Sizes, durations and fractions as people write them; what can be read two ways is refused with the reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.core.errors import UsageError
from batchcal.core.units import (
    count_of,
    format_bytes,
    format_seconds,
    parse_duration,
    parse_fraction,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2**31),
        ("2GB", 2 * 10**9),
        ("1.5 MiB", 1_572_864),
        (" 512kib ", 524_288),
        ("7B", 7),
        ("1TiB", 2**40),
        ("1tb", 10**12),
    ],
)
def test_a_size_with_a_unit_is_parsed_to_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2g", "2G", "512m", "4k", "1T"])
def test_a_size_with_an_ambiguous_unit_letter_is_rejected(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_size(text, name="memory-limit")

    assert "binary for some tools and decimal for others" in refused.value.known
    assert f"{text[:-1]}{text[-1].upper()}iB" in refused.value.try_
    assert f"{text[:-1]}{text[-1].upper()}B" in refused.value.try_


@pytest.mark.parametrize(
    ("text", "part"),
    [("2", "needs a unit"), ("2GiBs", "not a unit"), ("2X", "not a unit")],
)
def test_a_missing_or_unknown_unit_is_named(text: str, part: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_size(text)

    assert part in refused.value.known


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0GiB", "1e3MiB", "zwei GiB", "0.1B"])
def test_an_invalid_size_is_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60.0), ("2m", 120.0), ("2 min", 120.0), ("500ms", 0.5), ("1h", 3600.0), ("7d", 604_800.0), ("90", 90.0)],
)
def test_a_duration_is_parsed_to_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0s", "-5s", "5 weeks"])
def test_an_invalid_duration_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match=r"not a duration|not positive"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "fraction"), [("15%", 0.15), ("0.15", 0.15), ("0", 0.0), (" 60 %", 0.6)])
def test_a_fraction_is_parsed_from_a_percentage_or_a_number(text: str, fraction: float) -> None:
    assert parse_fraction(text, name="margin") == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["", "all", "1", "100%", "-1%", "15", "nan"])
def test_an_invalid_fraction_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="not a fraction"):
        parse_fraction(text, name="margin")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (2**20, "1.00 MiB"),
        (828 * 2**20, "828 MiB"),
        (1.45 * 2**30, "1.45 GiB"),
        (24.5 * 2**30, "24.5 GiB"),
        (5000 * 2**30, "5000 GiB"),
        (-(2**20), "-1.00 MiB"),
    ],
)
def test_bytes_are_formatted_with_three_digits(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(1, 2**50))
@settings(deadline=None, database=None)
def test_formatted_bytes_are_parsed_back_within_rounding(count: int) -> None:
    assert parse_size(format_bytes(count)) == pytest.approx(count, rel=0.01, abs=1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0434, "43 ms"), (1.23, "1.2 s"), (59.94, "59.9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (529_200, "6 d 3 h")],
)
def test_seconds_are_formatted_with_a_suitable_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_count_of_one_uses_the_singular() -> None:
    assert [count_of(number, "probe") for number in (0, 1, 2)] == ["0 probes", "1 probe", "2 probes"]
