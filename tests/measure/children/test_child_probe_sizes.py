"""Real children of tasks that do not take every batch size."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.units import GIB
from batchcal.guard.outcome import Fits, UserCodeFailed
from batchcal.measure.children.probe import RehearsalRequest, SizeRefused, TimingRequest
from tests.support.children import fitting, probing, request
from tests.support.plans import a_plan

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]


def test_an_examination_detects_that_the_next_size_is_rejected() -> None:
    with probing("even") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
    assert examination.refused == (3,)
    assert examination.shape_source == "fake-tensor"


def test_a_task_with_a_fixed_size_is_examined_with_that_size() -> None:
    with probing("baked", size=48) as probe:
        with pytest.raises(SizeRefused, match=r"got \[1, 48, 128\]") as raised:
            probe.examine("cpu", "default", GIB, 20.0)
        assert "Traceback" in raised.value.known
        assert probe.sizes_that_run("cpu", "default", (8, 32, 48, 64), 3.0) == (48,)
        probe.set_size_rule(SizeRule(least=48, most=48))
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert examination.refused == ()
        assert len(examination.shapes["train"]) > 1
        fitting(probe.measure(request(48)))
        refused = probe.measure(request(49)).outcome
    assert isinstance(refused, UserCodeFailed)
    assert refused.phase == "measure"


def test_a_task_with_one_size_per_process_runs_each_size_in_a_new_process() -> None:
    with probing("stateful") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert examination.refused == (3,)
        assert len(examination.shapes["train"]) > 1
        assert isinstance(probe.measure(request(64)).outcome, UserCodeFailed)
        alone = request(64).model_copy(update={"one_size": True})
        report = probe.measure(alone)
        assert "rlimit-data" in report.isolation.fence
        fitting(report)
        probe.set_size_rule(SizeRule(one_size=True))
        lap = TimingRequest(device="cpu", allocator="default", micro_batches=(8, 32), allowed_bytes=GIB, limit_s=10.0)
        assert {time.micro_batch for time in probe.time_sizes(lap).times} == {8, 32}
        evaluation = request(32, mode="eval").model_copy(update={"train_batch": 32})
        fitting(probe.measure(evaluation))


def test_a_plan_of_equal_micro_batches_is_rehearsed_with_one_size_per_process() -> None:
    plan = a_plan(32, 32, eval_batch=32, size_rule=SizeRule(one_size=True))
    with probing("stateful") as probe:
        probe.set_size_rule(SizeRule(one_size=True))
        report = probe.rehearse(
            RehearsalRequest(
                plan=plan,
                micro_batches=plan.micro_batches,
                eval_batches=(32,),
                worst_case=True,
                allowed_bytes=GIB,
                budget_bytes=GIB,
                least_s=0.2,
                limit_s=20.0,
            )
        )
    fits = report.outcome
    assert isinstance(fits, Fits), fits
    assert report.times is not None
    assert report.times.eval_samples_per_s[0] > 0
