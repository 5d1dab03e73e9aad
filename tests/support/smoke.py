"""The choice of tests with real processes that runs by default: the marker `smoke`, and the subjects that it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmokeChoice:
    """The tests marked `smoke` among all collected tests."""

    tests: int
    """Cases of a parametrised test count one by one."""
    subjects: frozenset[str]
    """`launcher:NAME`, `outcome:KIND`, `job:MODULE:FUNCTION`."""
    files: frozenset[Path]
    """Files with collected tests, marked or not."""


SMOKE = pytest.StashKey[SmokeChoice]()


def smoke_choice(items: list[pytest.Item]) -> SmokeChoice:
    marks = [mark for item in items if (mark := item.get_closest_marker("smoke")) is not None]
    return SmokeChoice(
        tests=len(marks),
        subjects=frozenset(subject for mark in marks for subject in mark.args),
        files=frozenset(item.path for item in items),
    )
