"""A value of ours refuses what it does not know; a value from a file keeps it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from batchcal.core.values import Frozen, Record


class Ours(Frozen):
    size: float


class Kept(Record):
    size: float


def test_an_unknown_field_of_an_internal_value_is_an_error() -> None:
    with pytest.raises(ValidationError):
        Ours.model_validate({"size": 1.0, "sise": 2.0})


def test_an_unknown_field_of_a_file_record_is_preserved() -> None:
    later = {"size": 1.0, "added_in_format_1_too": {"deep": [1, None]}}

    assert Kept.model_validate(later).model_dump(mode="json") == later


@pytest.mark.parametrize("kind", [Ours, Kept])
def test_values_are_immutable_and_reject_infinite_numbers(kind: type[Ours] | type[Kept]) -> None:
    value, field = kind(size=1.0), "size"

    with pytest.raises(ValidationError):
        setattr(value, field, 2.0)
    with pytest.raises(ValidationError):
        kind(size=float("inf"))
