"""Whole plans in real children: with accumulation, workers, evaluations, within a budget, and when something goes wrong."""

from __future__ import annotations

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits, OutOfMemory
from batchcal.measure.children.probe import Observation, RehearsalRequest
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from tests.support.calibrations import a_calibration
from tests.support.children import probing

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]

SLOW_DATA = "tests.measure.rehearsal.tasks:waiting"


def a_plan(*micro_batches: int, workers: int = 0, eval_batch: int = 8, threads: int = 1) -> Plan:
    plan = make_plan(a_calibration(), effective_batch=sum(micro_batches))
    return plan.model_copy(
        update={
            "micro_batches": micro_batches,
            "micro_batch": micro_batches[0],
            "accumulation_steps": len(micro_batches),
            "eval_batch": eval_batch,
            "num_workers": workers,
            "prefetch_factor": 2 if workers else None,
            "persistent_workers": workers > 0,
            "intra_op_threads": threads,
        }
    )


def rehearse(
    spec: str,
    plan: Plan,
    *,
    budget: int = GIB,
    evaluations: tuple[int, ...] = (),
    worst: bool = True,
    repeats: int = 8,
    limit_s: float = 20.0,
) -> Observation:
    probe_of = probing(spec, repeats=repeats) if spec == "wide" else probing(spec)
    with probe_of as probe:
        return probe.rehearse(
            RehearsalRequest(
                plan=plan,
                micro_batches=plan.micro_batches,
                eval_batches=evaluations,
                worst_case=worst,
                allowed_bytes=budget + 64 * MIB,
                budget_bytes=budget,
                least_s=0.2,
                limit_s=limit_s,
            )
        )


def test_activation_checkpointing_lowers_the_peak_of_a_rehearsal() -> None:
    plan, peaks = a_plan(48, 48), []
    with probing("batchcal.workload.examples.patchtst:task", activation_checkpointing="auto", n_layers=8) as probe:
        for keep in (False, True):
            report = probe.rehearse(
                RehearsalRequest(
                    plan=plan,
                    micro_batches=plan.micro_batches,
                    keep_activations=keep,
                    allowed_bytes=GIB,
                    budget_bytes=GIB,
                    least_s=0.2,
                    limit_s=20.0,
                )
            )
            peaks.append(fitting(report).peak.demand_bytes)
    assert peaks[0] < 0.97 * peaks[1], [peak // MIB for peak in peaks]


def fitting(report: Observation) -> Fits:
    assert isinstance(report.outcome, Fits), report.outcome
    return report.outcome


@pytest.mark.smoke("job:batchcal.measure.rehearsal.job:rehearse")
def test_a_rehearsal_runs_uneven_groups_and_both_evaluations() -> None:
    report = rehearse("wide", a_plan(12, 11, 11), evaluations=(12, 40), repeats=64)
    fits = fitting(report)
    assert fits.samples_per_s > 0
    assert report.times is not None
    assert len(report.times.eval_samples_per_s) == 2
    assert 0 <= report.times.wait_share <= 1
    assert fits.peak.demand_bytes > 200 * MIB


def test_a_rehearsal_skips_evaluations_of_a_task_without_evaluation_data() -> None:
    report = rehearse("tests.measure.rehearsal.tasks:penalised", a_plan(4, 4), evaluations=(4, 8))
    assert fitting(report).samples_per_s > 0
    assert report.times is not None
    assert report.times.eval_samples_per_s == ()


def test_the_peak_is_the_maximum_of_training_and_evaluation() -> None:
    small = fitting(rehearse("wide", a_plan(64), repeats=1024)).peak.demand_bytes
    large = fitting(rehearse("wide", a_plan(64), evaluations=(64, 256), repeats=1024)).peak.demand_bytes
    assert large > small + 100 * MIB


def test_a_plan_above_its_budget_is_out_of_memory() -> None:
    report = rehearse("wide", a_plan(256), budget=400 * MIB, repeats=1024)
    assert isinstance(report.outcome, OutOfMemory)
    assert report.outcome.source in {"fence", "budget"}
    assert report.times is None


def test_workers_hide_the_waiting_time_of_slow_data() -> None:
    alone = rehearse(SLOW_DATA, a_plan(16, 16), worst=False)
    helped = rehearse(SLOW_DATA, a_plan(16, 16, workers=2), worst=False)
    assert fitting(helped).samples_per_s > 1.5 * fitting(alone).samples_per_s
    assert alone.times is not None
    assert alone.times.wait_share > 0.7


def test_prefetched_batches_do_not_count_as_speed() -> None:
    """While the largest samples run, workers fill their queue: what is taken from that comes at once."""
    plan = a_plan(32, workers=2)
    plenty = fitting(rehearse(SLOW_DATA, plan, worst=False)).samples_per_s
    hurried = fitting(rehearse(SLOW_DATA, plan, worst=False, limit_s=0.01)).samples_per_s
    assert hurried < 1.2 * plenty


def test_a_worker_that_dies_ends_the_rehearsal_as_worker_died() -> None:
    report = rehearse("tests.measure.rehearsal.tasks:dying", a_plan(16, workers=1), worst=False)
    assert report.outcome.kind == "worker-died", report.outcome


def test_data_that_forked_workers_cannot_read_is_read_with_forkserver() -> None:
    plan = a_plan(16, 16, workers=1)
    forked = rehearse("tests.measure.rehearsal.tasks:unforkable", plan, worst=False)
    afresh = plan.model_copy(update={"multiprocessing_context": "forkserver"})
    assert forked.outcome.kind == "worker-died", forked.outcome
    assert fitting(rehearse("tests.measure.rehearsal.tasks:unforkable", afresh, worst=False)).samples_per_s > 0


def test_an_effective_batch_larger_than_the_dataset_uses_the_next_epoch() -> None:
    with probing("tests.measure.rehearsal.tasks:few") as probe:
        plan = a_plan(10, 10, 10, 10)
        report = probe.rehearse(
            RehearsalRequest(
                plan=plan,
                micro_batches=plan.micro_batches,
                allowed_bytes=GIB,
                budget_bytes=GIB,
                least_s=0.05,
                limit_s=20.0,
            )
        )
    assert fitting(report).samples_per_s > 0
