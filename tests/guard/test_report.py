"""Whose file it is that an error came through."""

from __future__ import annotations

from pathlib import Path

import pytest

import batchcal
from batchcal.guard.report import is_ours

HOUSE = Path(batchcal.__file__).parent


@pytest.mark.parametrize(
    ("file", "ours"),
    [
        (HOUSE / "measure" / "child.py", True),
        (HOUSE / "workload" / "examples" / "patchtst.py", False),
        (HOUSE.parent / "batchcal_tasks" / "train.py", False),
        (HOUSE.parent / "train.py", False),
    ],
)
def test_a_folder_whose_name_begins_like_ours_is_the_user_s(file: Path, ours: bool) -> None:
    assert is_ours(str(file)) == ours
