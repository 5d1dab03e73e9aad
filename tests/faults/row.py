"""A row of the table of faults."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    fault: str
    tests: tuple[str, ...]
    """`file::test`, the file below tests/."""
    not_here: str = ""
    """What of it cannot be injected on a machine with cgroup v1 and no accelerator, and why."""


def in_faults(module: str, *names: str) -> tuple[str, ...]:
    """Tests of `test_MODULE.py` beside this file."""
    return tuple(f"faults/test_{module}.py::{name}" for name in names)
