"""What a rehearsal's answer means: whether training or evaluation was too much."""

from __future__ import annotations

import pytest

from batchcal.core.errors import NothingFits, Partial
from batchcal.core.units import GIB, MIB
from batchcal.guard.channel.wire import JSON
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Fits, Infrastructure, OutOfMemory, Phase
from batchcal.measure.children.answers import KeptMemory, MemoryLimits, evaluating, failure, rehearsal_outcome, rehearsal_times
from batchcal.measure.children.child_memory import ChildMemory
from batchcal.measure.children.probe import RehearsalRequest
from batchcal.measure.rehearsal.job import RehearsalAnswer
from batchcal.plan.make import make_plan
from tests.support.calibrations import a_calibration

WITHIN = MemoryLimits(device="cpu", budget_bytes=800 * MIB, host_budget_bytes=GIB, group_base_bytes=None)


def answer(*, training: int, most: int, workers: int = 0) -> JSON:
    held = ChildMemory(
        anonymous_bytes=300 * MIB,
        shared_bytes=0,
        file_bytes=0,
        workers_bytes=workers * MIB,
        load_peak_bytes=200 * MIB,
        begin_bytes=250 * MIB,
        step_peak_bytes=most * MIB,
        accelerator_bytes=None,
        accelerator_allocated_bytes=None,
        accelerator_retries=0,
    )
    told = RehearsalAnswer(
        held=held,
        train_peak_bytes=training * MIB,
        groups=2,
        sample_s=0.001,
        wait_s=0.0002,
        update_s=0.01,
        eval_sample_s=(0.0005,),
        foreign_share=None,
    )
    value: JSON = told.model_dump(mode="json")
    return value


def request(*sizes: int) -> RehearsalRequest:
    plan = make_plan(a_calibration(), effective_batch=sum(sizes)).model_copy(update={"micro_batches": sizes})
    return RehearsalRequest(plan=plan, micro_batches=sizes, allowed_bytes=GIB, budget_bytes=800 * MIB, least_s=0.1, limit_s=1.0)


def test_the_rate_covers_complete_optimizer_steps() -> None:
    outcome = rehearsal_outcome(answer(training=500, most=600), Ending(), WITHIN, request(50, 50))
    assert isinstance(outcome, Fits)
    assert outcome.step_s == pytest.approx(100 * 0.001 + 0.01)
    assert outcome.samples_per_s == pytest.approx(100 / 0.11)
    times = rehearsal_times(answer(training=500, most=600))
    assert times.wait_share == pytest.approx(0.2)
    assert times.eval_samples_per_s == pytest.approx((2000.0,))


def test_a_rehearsal_above_its_budget_is_out_of_memory() -> None:
    outcome = rehearsal_outcome(answer(training=500, most=900), Ending(), WITHIN, request(50))
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "budget"


@pytest.mark.parametrize(
    ("training", "most", "workers", "heard", "expected"),
    [
        (500, 900, 0, True, True),
        (900, 950, 0, True, False),
        (500, 900, 0, False, False),
        (850, 700, 150, True, False),
    ],
    ids=["evaluation", "training", "before any", "workers"],
)
def test_evaluation_is_the_cause_only_if_training_stayed_within_the_budget(
    training: int, most: int, workers: int, heard: bool, expected: bool
) -> None:
    assert evaluating(answer(training=training, most=most, workers=workers), WITHIN, reported=heard) is expected


def test_a_child_that_dies_during_evaluation_is_attributed_to_evaluation() -> None:
    assert evaluating(None, WITHIN, reported=True)
    assert not evaluating(None, WITHIN, reported=False)


def test_an_invalid_rehearsal_answer_is_an_infrastructure_outcome() -> None:
    assert isinstance(rehearsal_outcome({"groups": 0}, Ending(), WITHIN, request(8)), Infrastructure)


def ran_out(phase: Phase) -> Ending:
    return Ending(killed_for="memory", kill_reason="the child reached 1.3 GiB", phase=phase, peak_anonymous_bytes=GIB)


@pytest.mark.parametrize(
    ("phase", "where"),
    [("load", "while it was loaded"), ("read", "while its samples were read"), ("warm-up", "on its first small batch")],
)
def test_an_out_of_memory_error_names_the_phase(phase: Phase, where: str) -> None:
    error = failure(ran_out(phase), GIB)
    assert isinstance(error, NothingFits)
    assert f"ran out of memory {where} (" in error.what


def test_memory_kept_by_a_dataset_is_shown_in_readable_units() -> None:
    error = failure(ran_out("read"), GIB, KeptMemory(kept_bytes_per_sample=768 * 1024, train_samples=4000))
    assert "keeps 768 KiB of each sample that it has read, 2.93 GiB after 4000 samples" in error.known
    assert "a bound for what the dataset keeps" in error.try_


def test_a_timeout_while_samples_are_read_does_not_blame_the_import() -> None:
    ending = Ending(killed_for="deadline", kill_reason="", phase="read", limit_name="the time limit of 20 s (--time-limit)")
    error = failure(ending, GIB)
    assert isinstance(error, Partial)
    assert error.what == "the time limit of 20 s (--time-limit) ended while samples were read"
    assert "__main__" not in error.try_


def test_a_limit_below_the_memory_of_torch_names_torch() -> None:
    assert "Python and torch alone need 900 MiB" in failure(ran_out("load"), GIB, torch_bytes=900 * MIB).known
    assert "torch" not in failure(ran_out("load"), GIB, torch_bytes=230 * MIB).known
