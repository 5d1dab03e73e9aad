"""What races and rehearsals make of a plan: verified where it was run whole, smaller where that failed."""

from __future__ import annotations

from functools import partial

from batchcal.calibration.records.rehearsal import Finalist
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import SharedMemory
from batchcal.guard.outcome import OutOfMemory, WorkerDied
from batchcal.plan.make import make_plan as make
from tests.support.calibrations import a_calibration, an_environment, fits
from tests.support.races import a_race, rehearsed

make_plan = partial(make, objective="memory")
"""How an effective batch is divided is the same for both."""


def test_only_the_exact_rehearsed_plan_is_verified() -> None:
    first = make_plan(a_calibration(), effective_batch=1000)
    calibration = a_calibration(rehearsals=(rehearsed(first, fits(830, 1400.0, batch=1000), run=1),))
    plan = make_plan(calibration, effective_batch=1000)
    assert plan.status == "verified"
    assert (plan.predicted_peak_bytes, plan.predicted_samples_per_s) == (830 * MIB, 1400.0)
    assert plan.why["status"] == "this exact plan was rehearsed with 1 of 2 micro-batches per step: its peak is within the budget"
    other = make_plan(calibration, effective_batch=998)
    assert other.status == "derived"
    assert other.why["status"].endswith("batchcal calibrate --effective-batch 998 rehearses it")


def test_a_plan_that_ran_out_of_memory_is_replaced_by_a_smaller_plan() -> None:
    first = make_plan(a_calibration(), effective_batch=1024)
    failed = rehearsed(first, OutOfMemory(source="budget", detail="too much"))
    plan = make_plan(a_calibration(rehearsals=(failed,)), effective_batch=1024)
    assert plan.micro_batch <= 0.9 * first.micro_batch
    assert sum(plan.micro_batches) == 1024
    assert plan.status == "derived"


def test_the_plan_uses_the_threads_and_workers_that_won_the_race() -> None:
    winner = Finalist(intra_op_threads=1, num_workers=1, prefetch_factor=2, bound_samples_per_s=150.0, samples_per_s=140.0)
    alone = Finalist(intra_op_threads=2, num_workers=0, prefetch_factor=None, bound_samples_per_s=100.0, samples_per_s=100.0)
    shm = SharedMemory(path="/dev/shm", size_bytes=GIB, free_bytes=GIB)
    environment = an_environment(shared_memory=shm)
    plan = make_plan(a_calibration(finals=(a_race(winner, alone),), environment=environment), effective_batch=128)
    assert (plan.intra_op_threads, plan.num_workers, plan.prefetch_factor, plan.persistent_workers) == (1, 1, 2, True)
    assert plan.why["num_workers"] == "40% faster than without workers, in a race"
    failed = rehearsed(plan, WorkerDied(detail="killed"))
    without = make_plan(
        a_calibration(finals=(a_race(winner, alone),), environment=environment, rehearsals=(failed,)), effective_batch=128
    )
    assert (without.num_workers, without.why["num_workers"]) == (0, "a rehearsal with workers failed")


def test_the_plan_reports_the_gain_of_workers_that_the_race_rejected() -> None:
    winner = Finalist(intra_op_threads=2, num_workers=0, prefetch_factor=None, bound_samples_per_s=100.0, samples_per_s=100.0)
    pruned = Finalist(intra_op_threads=2, num_workers=1, prefetch_factor=2, bound_samples_per_s=108.0, left="pruned", why="8%")
    plan = make_plan(a_calibration(finals=(a_race(winner, pruned),)))
    assert (plan.num_workers, plan.why["num_workers"]) == (0, "workers could gain at most 8%")
