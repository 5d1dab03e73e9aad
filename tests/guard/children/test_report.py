"""The report of an error: whose file it came through, and what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import batchcal
from batchcal.core.errors import UsageError, UserCodeError
from batchcal.guard.children.report import HEADLINE_LIMIT, Raised, describe, is_ours
from batchcal.workload.model.loss_error import LossIsNoNumber

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
def test_a_folder_name_that_starts_with_batchcal_is_user_code(file: Path, ours: bool) -> None:
    assert is_ours(str(file)) == ours


def test_an_error_of_a_child_is_recognized_by_its_base_classes() -> None:
    (link,) = describe(LossIsNoNumber("the loss is nan"), "measure").chain
    assert all(map(link.is_a, (LossIsNoNumber, UserCodeError, Exception)))
    assert not link.is_a(UsageError)


def test_a_file_name_that_is_not_utf8_is_readable_in_the_parent() -> None:
    """Python has such a file name with halves of surrogate pairs, which JSON does not have."""
    missing = FileNotFoundError(2, "No such file or directory", "data/\udcff.bin")

    raised = describe(missing, "read")

    assert Raised.model_validate_json(raised.model_dump_json()) == raised
    assert "udcff.bin" in raised.headline
    assert "udcff.bin" in raised.traceback


def test_a_long_error_has_a_short_headline_and_a_complete_traceback() -> None:
    raised = describe(ValueError("9" * 20_000), "measure")

    assert len(raised.headline) <= HEADLINE_LIMIT + 3
    assert raised.headline.endswith("...")
    assert "9" * 20_000 in raised.traceback
