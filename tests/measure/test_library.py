"""From a Python script: a real calibration, from end to end, and what it raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.calibration.keys import find_trust
from batchcal.calibration.store import Loaded, load
from batchcal.core.errors import Partial, UsageError, UserCodeError
from batchcal.core.progress import Recorded
from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits
from batchcal.measure.library import calibrate

pytestmark = pytest.mark.child

REPOSITORY = Path(__file__).resolve().parents[2]
WIDE = "tests.measure.tasks:wide"


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_a_real_calibration_returns_a_size_measured_in_a_fenced_child(tmp_path: Path) -> None:
    path, told = tmp_path / "calibration.json", Recorded()
    calibration = calibrate(
        WIDE,
        device="cpu",
        allocator="default",
        objective="memory",
        memory_limit_bytes=900 * MIB,
        max_batch=100,
        samples=3,
        output=path,
        progress=told,
    )
    finding = calibration.finding()
    assert finding is not None
    assert (finding.train.batch, finding.train.limited_by) == (100, "max-batch")
    assert finding.eval is not None
    assert (finding.eval.batch, finding.eval.limited_by) == (50, "dataset")
    run = next(one for one in calibration.measurements if one.sequence == finding.train.measured_by)
    assert isinstance(run.outcome, Fits)
    assert run.isolation.launcher == "zygote"
    assert {"rlimit-data", "watchdog"} <= set(run.isolation.fence)
    budget = calibration.budget()
    assert budget is not None
    assert budget.learned_from == "--memory-limit"
    assert finding.train.peak_bytes <= budget.budget_bytes == 765 * MIB
    found = load(path, trust=find_trust({}))
    assert isinstance(found, Loaded)
    assert found.calibration == calibration
    assert (
        calibrate(
            WIDE,
            device="cpu",
            allocator="default",
            objective="memory",
            memory_limit_bytes=900 * MIB,
            max_batch=100,
            samples=3,
            output=path,
        )
        == calibration
    )


def test_a_calibration_without_time_saves_a_partial_result(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    with pytest.raises(Partial):
        calibrate(WIDE, device="cpu", allocator="default", objective="memory", time_limit_s=0.01, output=path)
    found = load(path, trust=find_trust({}))
    assert isinstance(found, Loaded)
    assert found.calibration.status == "partial"


def test_a_path_that_cannot_be_written_is_a_usage_error_before_any_probe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="cannot be written"):
        calibrate(
            WIDE,
            device="cpu",
            allocator="default",
            objective="memory",
            max_batch=8,
            samples=3,
            output=tmp_path / "file" / "calibration.json",
        )


def test_an_error_in_user_code_is_raised_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError) as raised:
        calibrate("tests.measure.tasks:failing", device="cpu", output=tmp_path / "calibration.json")
    assert "no data at /nowhere" in str(raised.value)
