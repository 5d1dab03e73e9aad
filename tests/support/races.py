"""The races of the calibration of `calibrations.py`: what was timed, what was run whole, what it gains."""

from __future__ import annotations

from batchcal.calibration.records.rehearsal import Attribution, Finalist, Finals, Rehearsal, TurnedBack
from batchcal.calibration.records.speed import Speeds
from batchcal.calibration.schema import Calibration
from batchcal.guard.outcome import Outcome
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.plan.rehearsals.rehearsed import setup_of
from tests.support.calibrations import a_calibration, fits, step_time


def rehearsed(plan: Plan, outcome: Outcome, *, run: int | None = None) -> Rehearsal:
    """`plan`, of whose micro-batches `run` were run."""
    return Rehearsal(
        settings=setup_of(plan),
        micro_batches_run=run or len(plan.micro_batches),
        outcome=outcome,
        evaluating=False,
        wait_share=0.1,
        eval_samples_per_s=6100.0,
        eval_samples_per_s_at_micro_batch=4000.0,
        wall_s=2.0,
    )


def a_race(*finalists: Finalist, settled: bool = True) -> Finals:
    return Finals(device="cpu", allocator="default", micro_batch=128, finalists=finalists, settled=settled)


def a_raced_calibration(**overrides: object) -> Calibration:
    """`a_calibration()` with two policies raced, of which the simpler won, and its plan run whole."""
    speeds = (
        Speeds(
            device="cpu",
            allocator="default",
            times=(step_time(64, 64 / 1500), step_time(128, 128 / 2000), step_time(256, 256 / 1480)),
            rounds=3,
            left="",
            spread=0.021,
        ),
        Speeds(
            device="cpu",
            allocator="thp",
            times=(step_time(64, 64 / 1100), step_time(128, 128 / 1210)),
            rounds=2,
            left="slower",
            why="65% slower in 2 rounds",
            spread=0.04,
        ),
    )
    finals = a_race(
        Finalist(intra_op_threads=2, num_workers=0, prefetch_factor=None, bound_samples_per_s=2000.0, samples_per_s=2000.0),
        Finalist(
            intra_op_threads=1,
            num_workers=0,
            prefetch_factor=None,
            bound_samples_per_s=1100.0,
            left="pruned",
            why="82% slower than the best number of threads",
        ),
        Finalist(
            intra_op_threads=2,
            num_workers=1,
            prefetch_factor=2,
            bound_samples_per_s=2180.0,
            left="pruned",
            why="a gain of at most 9%",
        ),
    )
    timed = a_calibration(speeds=speeds, finals=(finals,), effective_batch=512)
    plan = make_plan(timed)
    attribution = Attribution(
        effective_batch=512,
        samples_per_s=1990.0,
        usual_samples_per_s=700.0,
        knobs=(TurnedBack(knob="micro_batch", chosen="128", usual="512", samples_per_s=700.0),),
        rounds=2,
    )
    whole = rehearsed(plan, fits(480, 1980.0, batch=512), run=4)
    return timed.model_copy(update={"rehearsals": (whole,), "attribution": attribution, **overrides})
