from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.plan.division.split import nearest_total, split, split_by

SIZES = st.integers(min_value=1, max_value=100_000)


@pytest.mark.parametrize(
    ("total", "capacity", "sizes"),
    [
        (100, 32, (25, 25, 25, 25)),
        (97, 32, (25, 24, 24, 24)),
        (96, 32, (32, 32, 32)),
        (7, 32, (7,)),
        (32, 32, (32,)),
        (33, 32, (17, 16)),
        (5, 1, (1, 1, 1, 1, 1)),
    ],
)
def test_an_effective_batch_is_split_as_evenly_as_possible(total: int, capacity: int, sizes: tuple[int, ...]) -> None:
    assert split(total, capacity) == sizes


@given(total=st.integers(min_value=1, max_value=20_000), capacity=st.integers(min_value=1, max_value=5_000))
def test_a_split_has_the_exact_sum_and_the_fewest_parts_within_the_capacity(total: int, capacity: int) -> None:
    sizes = split(total, capacity)
    assert sum(sizes) == total
    assert max(sizes) <= capacity
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert (len(sizes) - 1) * capacity < total, "one part fewer would not hold them"
    assert list(sizes) == sorted(sizes, reverse=True)


@given(
    total=st.integers(min_value=1, max_value=20_000),
    capacity=st.integers(min_value=1, max_value=2_000),
    multiple_of=st.integers(min_value=1, max_value=64),
)
def test_multiple_of_never_adds_a_micro_batch_or_changes_the_sum(total: int, capacity: int, multiple_of: int) -> None:
    sizes = split(total, capacity, multiple_of=multiple_of)
    assert sum(sizes) == total
    assert max(sizes) <= capacity
    assert len(sizes) == len(split(total, capacity))
    if total % multiple_of == 0 and capacity % multiple_of == 0:
        assert all(size % multiple_of == 0 for size in sizes)
        assert max(sizes) - min(sizes) in {0, multiple_of}


def test_multiple_of_applies_only_if_the_sum_and_the_step_count_allow_it() -> None:
    assert split(96, 40, multiple_of=8) == (32, 32, 32)
    assert split(100, 32, multiple_of=8) == (25, 25, 25, 25), "a hundred is no multiple of eight"
    assert split(64, 33, multiple_of=16) == (32, 32)
    assert split(48, 31, multiple_of=16) == (24, 24), "in sixteens it would take three steps"


@pytest.mark.parametrize(("total", "capacity", "multiple_of"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-3, 4, 1)])
def test_split_rejects_values_below_one(total: int, capacity: int, multiple_of: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split(total, capacity, multiple_of=multiple_of)


RULES = st.one_of(
    st.builds(lambda multiple: SizeRule(multiple_of=multiple, least=multiple), st.integers(2, 64)),
    st.builds(lambda size: SizeRule(least=size, most=size), st.integers(2, 64)),
    st.builds(lambda least: SizeRule(least=least), st.integers(2, 64)),
    st.just(SizeRule(one_size=True)),
)


@given(rule=RULES, total=st.integers(1, 2000), largest=st.integers(1, 500))
def test_every_part_of_a_split_by_a_size_rule_is_valid(rule: SizeRule, total: int, largest: int) -> None:
    sizes = split_by(rule, total, largest)
    assert not sizes or sum(sizes) == total
    assert all(rule.admits(size) and size <= largest for size in sizes)
    if rule.one_size:
        assert len(set(sizes)) == 1


@given(rule=RULES, total=st.integers(1, 500), capacity=st.integers(64, 200))
def test_nearest_total_returns_an_effective_batch_that_the_rule_can_split(rule: SizeRule, total: int, capacity: int) -> None:
    near = nearest_total(rule, total, capacity)
    assert near is not None
    assert split_by(rule, near, capacity)


@pytest.mark.parametrize(
    ("rule", "total", "largest", "sizes"),
    [
        (SizeRule(multiple_of=2, least=2), 100, 32, (26, 26, 24, 24)),
        (SizeRule(multiple_of=2, least=2), 101, 32, ()),
        (SizeRule(multiple_of=32, least=32), 96, 50, (32, 32, 32)),
        (SizeRule(least=32, most=32), 64, 500, (32, 32)),
        (SizeRule(least=32, most=32), 100, 500, ()),
        (SizeRule(least=20), 33, 32, ()),
        (SizeRule(one_size=True), 100, 32, (25, 25, 25, 25)),
        (SizeRule(one_size=True), 101, 128, (101,)),
    ],
)
def test_a_size_rule_determines_the_split(rule: SizeRule, total: int, largest: int, sizes: tuple[int, ...]) -> None:
    assert split_by(rule, total, largest) == sizes


def test_equal_parts_of_a_prime_effective_batch_can_exceed_the_fastest_size() -> None:
    assert split_by(SizeRule(one_size=True), 409, 200, most=409) == (409,)
