"""The tests that start real processes by default meet every launcher, every outcome and every job of a child."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, get_args

import pytest

from batchcal.guard import outcome
from tests.support.smoke import SMOKE, SmokeChoice

ROOT: Final = Path(__file__).resolve().parents[1]
NOT_HERE: Final = {"outcome:swapping": "needs a machine with swap; unit tests classify it"}
JOB: Final = re.compile(r"^def ([a-z_]+)\(arguments: dict\[str, JSON\], context: ChildContext\) -> JSON:", re.MULTILINE)
"""A function that a child runs."""


@pytest.fixture
def choice(request: pytest.FixtureRequest) -> SmokeChoice:
    collected = request.config.stash[SMOKE]
    unit_files = {path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "docs"}
    if unit_files - collected.files:
        pytest.skip("only some of the tests were collected")
    return collected


def test_smoke_tests_cover_each_launcher_outcome_and_job(choice: SmokeChoice) -> None:
    kinds = [get_args(model.model_fields["kind"].annotation)[0] for model in get_args(get_args(outcome.Outcome)[0])]
    product = [path for path in (ROOT / "batchcal").rglob("*.py") if "examples" not in path.parts]
    jobs = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}:{name}"
        for path in product
        for name in JOB.findall(path.read_text(encoding="utf-8"))
    }
    assert len(jobs) >= 8
    launchers = {"launcher:zygote", "launcher:spawn", "launcher:command"}
    expected = {*launchers, *(f"outcome:{kind}" for kind in kinds), *(f"job:{name}" for name in jobs)}
    assert choice.subjects == expected - set(NOT_HERE)


def test_the_number_of_smoke_tests_stays_small(choice: SmokeChoice) -> None:
    """Two seconds a test: with 80 tests the default run would no longer end within its eight minutes."""
    assert 30 <= choice.tests <= 70
