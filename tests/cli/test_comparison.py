"""Two calibrations side by side: what changed is told, by how much, and what a race cannot tell is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchcal.__main__ import main
from batchcal.calibration.keys import find_trust
from batchcal.calibration.schema import Calibration
from batchcal.calibration.store import save
from batchcal.cli.views.calibration.comparison import compare
from batchcal.core.units import GIB
from tests.support.calibrations import a_calibration, an_environment
from tests.support.races import a_raced_calibration


def moved() -> Calibration:
    """The same with twice the memory and another torch."""
    here = an_environment()
    limit = here.memory.limit.model_copy(update={"value": 2 * GIB})
    software = here.software.model_copy(update={"torch": "2.14.0"})
    environment = here.model_copy(update={"memory": here.memory.model_copy(update={"limit": limit}), "software": software})
    return a_raced_calibration(environment=environment)


def test_a_comparison_reports_changes_with_their_ratio() -> None:
    rows = {row.name: row for row in compare(a_raced_calibration(), moved())}
    assert {name for name, row in rows.items() if row.changed} == {"memory limit", "torch"}
    assert rows["memory limit"].ratio == 2.0
    assert (rows["torch"].first, rows["torch"].second, rows["torch"].ratio) == ("2.13.0", "2.14.0", None)
    assert rows["micro-batch"].first == 128


def test_a_comparison_shows_none_for_a_missing_value() -> None:
    rows = {row.name: row for row in compare(a_calibration(status="partial", findings=()), a_raced_calibration())}
    assert (rows["train capacity"].first, rows["train capacity"].second) == (None, 512)
    assert rows["train capacity"].changed


def test_a_rate_difference_below_the_precision_of_a_race_is_not_a_change() -> None:
    (alike,) = (row for row in compare(a_raced_calibration(), a_raced_calibration()) if row.name == "samples/s")
    near = alike.model_copy(update={"second": 1.02 * float(alike.first or 0)})
    far = alike.model_copy(update={"second": 1.05 * float(alike.first or 0)})
    assert (near.changed, far.changed) == (False, True)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    for name, calibration in (("a.json", a_raced_calibration()), ("b.json", moved())):
        save(calibration, tmp_path / name, key=find_trust({}).key)
    return "a.json", "b.json"


def test_show_compares_two_files(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *two]) == 0
    out = capsys.readouterr().out
    assert "2.00x" in out
    assert "2.14.0" in out
    assert "unchanged: task" in out
    assert main(["show", "a.json", "a.json"]) == 0
    assert capsys.readouterr().out.strip() == "no change that affects the plan"


def test_the_json_comparison_is_a_single_document(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *two, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["first"], document["second"]) == ("comparison", *two)
    limit = next(row for row in document["rows"] if row["name"] == "memory limit")
    assert (limit["ratio"], limit["changed"]) == (2.0, True)


@pytest.mark.parametrize("arguments", [["a.json", "b.json", "--why"], ["a.json", "b.json", "--html", "x.html"]])
def test_why_and_html_are_rejected_for_a_comparison(
    arguments: list[str], two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", *arguments]) == 2
    assert "try: batchcal show a.json b.json" in capsys.readouterr().err


def test_a_missing_second_file_exits_with_code_3(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", two[0], "missing.json"]) == 3
    assert "missing.json" in capsys.readouterr().err
