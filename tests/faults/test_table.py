"""The table of faults: each with the tests that inject it here, and what cannot be injected here, with the reason.

The numbers are those of the project's table of faults and expected behaviour (rows 1-57: measuring and the file; 58-61 are
training's); the rows lie in the `table_` files beside this one. A name stands for all cases of its test.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Final

from tests.faults.row import Row
from tests.faults.table_file import FILE
from tests.faults.table_machine import MACHINE
from tests.faults.table_probes import PROBES

TESTS: Final = Path(__file__).resolve().parents[1]
TABLE: Final[dict[int, Row]] = {**PROBES, **FILE, **MACHINE}


@functools.cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_fault_has_a_row_with_tests_that_exist() -> None:
    assert list(TABLE) == list(range(1, 58))
    assert all(row.fault and row.tests for row in TABLE.values())
    named = [test.partition("::") for row in TABLE.values() for test in row.tests]
    assert [f"{file}::{name}" for file, _, name in named if name not in names_in(file)] == []
