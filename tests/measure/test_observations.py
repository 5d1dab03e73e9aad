"""The probes of a calibration in its file: summed up by setup, and never more than the file may hold."""

from __future__ import annotations

from pathlib import Path

from batchcal.calibration.keys import Trust
from batchcal.calibration.records.setup_runs import Quantiles
from batchcal.calibration.store import Loaded, load, save
from batchcal.core.units import MIB
from batchcal.guard.children.report import HEADLINE_LIMIT, TEXT_LIMIT
from batchcal.guard.outcome import OutOfMemory, TimedOut, UserCodeFailed
from batchcal.measure.observations import CUT, summed_up, with_bounded_evidence
from tests.support.calibrations import a_calibration, fits, measurement


def test_runs_of_one_setup_are_summed_up() -> None:
    runs = [
        measurement(sequence=5, batch=64, phase="refusal", outcome=fits(300, 640.0, batch=64)),
        measurement(sequence=1, batch=64, outcome=fits(400, 640.0, batch=64)),
        measurement(sequence=2, batch=64, outcome=fits(420, 320.0, batch=64)),
        measurement(sequence=3, batch=64, outcome=OutOfMemory(source="fence")),
        measurement(sequence=4, batch=64, mode="eval", outcome=OutOfMemory(source="fence")),
    ]

    train, evaluation = summed_up(runs, num_workers=2)

    assert (train.mode, train.batch, train.num_workers, train.count) == ("train", 64, 2, 3)
    assert train.outcomes == {"fits": 2, "out-of-memory": 1}
    assert train.peak_bytes == Quantiles(least=400 * MIB, median=410 * MIB, p90=418 * MIB, greatest=420 * MIB)
    assert train.step_s is not None
    assert (train.step_s.least, train.step_s.greatest) == (0.1, 0.2)
    assert (evaluation.count, evaluation.peak_bytes, evaluation.step_s) == (1, None, None)


def test_quantiles_of_one_run_equal_its_value() -> None:
    assert Quantiles.of([3.0]) == Quantiles(least=3.0, median=3.0, p90=3.0, greatest=3.0)


def refused(sequence: int) -> UserCodeFailed:
    """As long as an outcome can be, in characters that JSON writes with six."""
    error = f"ValueError: {sequence:0{HEADLINE_LIMIT}}"
    return UserCodeFailed(phase="measure", error=error, traceback="\x01" * TEXT_LIMIT, output="\x01" * 4000)


def test_only_the_last_of_many_long_tracebacks_are_saved(tmp_path: Path) -> None:
    runs = [measurement(sequence=sequence, outcome=refused(sequence), why="x" * 200) for sequence in range(1, 501)]
    kept = with_bounded_evidence(runs)
    setups = summed_up(runs, num_workers=0)

    save(a_calibration(measurements=kept, setups=setups), tmp_path / "calibration.json")

    found = load(tmp_path / "calibration.json", trust=Trust(None))
    assert isinstance(found, Loaded)
    assert [one.sequence for one in found.calibration.measurements] == list(range(1, 501))
    assert kept[-1] == runs[-1]
    first = kept[0].outcome
    assert isinstance(first, UserCodeFailed)
    assert (first.error, first.traceback) == (refused(1).error, CUT)
    assert setups[0].count == 500


def test_truncated_details_are_marked() -> None:
    hung = TimedOut(phase="measure", limit_s=3.0, detail="it hung\n" + "x" * 200_000)
    runs = [measurement(sequence=sequence, outcome=hung) for sequence in range(1, 11)]

    kept = [one.outcome for one in with_bounded_evidence(runs)]

    assert kept[-1] == hung
    assert kept[0] == hung.model_copy(update={"detail": f"it hung\n{CUT}"})


def test_short_details_are_not_truncated() -> None:
    hung = TimedOut(phase="measure", limit_s=3.0, detail="it hung\nFile train.py, line 3")
    runs = [measurement(outcome=hung), measurement(sequence=2)]

    assert with_bounded_evidence(runs) == tuple(runs)
