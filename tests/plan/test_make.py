"""Plans from a calibration whose numbers are known: capacity 512 at 822 MiB, 256 at 544 MiB, 839 MiB of budget."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.records.speed import Speeds
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.calibration.schema import Budget, Calibration, Capacity, Finding
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Fact, SharedMemory
from batchcal.guard.outcome import Fits, Peak
from batchcal.plan.make import make_plan as make
from batchcal.plan.plan import KEYS, Plan
from tests.support.calibrations import (
    BUDGET_BYTES,
    EVAL_CAPACITY,
    TRAIN_CAPACITY,
    a_calibration,
    a_finding,
    an_environment,
    fits,
    measurement,
    measurements,
    options,
    step_time,
)

make_plan = partial(make, objective="memory")
"""How an effective batch is divided is the same for both; the tests of `throughput` say so."""


def with_parameters(parameter_bytes: int, **overrides: object) -> Calibration:
    facts = a_calibration().facts
    assert facts is not None
    return a_calibration(facts=facts.model_copy(update={"parameter_bytes": parameter_bytes}), **overrides)


def test_a_plan_with_too_many_micro_batches_is_rejected() -> None:
    with pytest.raises(UsageError, match="more than 65536 micro-batches"):
        make_plan(a_calibration(), effective_batch=2**40)


def test_a_plan_without_an_effective_batch_is_one_micro_batch_with_a_notice() -> None:
    plan = make_plan(a_calibration())
    assert (plan.micro_batch, plan.micro_batches, plan.effective_batch) == (TRAIN_CAPACITY, (TRAIN_CAPACITY,), TRAIN_CAPACITY)
    assert plan.status == "derived", "nobody ran it whole"
    assert plan.predicted_peak_bytes >= 822 * MIB
    assert plan.predicted_samples_per_s == pytest.approx(1530, rel=0.01)
    assert plan.eval_batch == EVAL_CAPACITY
    assert plan.limited_by == "memory"
    assert plan.budget_bytes == BUDGET_BYTES
    assert [notice.partition(":")[0] for notice in plan.notices] == ["the effective batch is not set"]


def test_the_effective_batch_argument_overrides_the_calibration() -> None:
    calibration = a_calibration(effective_batch=96)
    assert make_plan(calibration).effective_batch == 96
    assert make_plan(calibration, effective_batch=64).effective_batch == 64


def test_an_effective_batch_above_the_capacity_is_split_evenly() -> None:
    plan = make_plan(a_calibration(), effective_batch=1000)
    assert plan.micro_batches == (500, 500)
    assert plan.accumulation_steps == 2
    assert plan.status == "derived", "500 was not run"
    measured_at_capacity = 1530.0
    assert plan.predicted_samples_per_s is not None
    assert 1480 < plan.predicted_samples_per_s < measured_at_capacity


def test_a_plan_below_the_capacity_is_one_micro_batch() -> None:
    plan = make_plan(a_calibration(), effective_batch=256)
    assert plan.limited_by == "effective-batch"
    assert plan.predicted_peak_bytes >= 544 * MIB


def test_a_rate_is_not_extrapolated_below_the_timed_sizes() -> None:
    assert make_plan(a_calibration(), effective_batch=3).predicted_samples_per_s is None


def test_the_predicted_peak_is_never_below_a_measured_peak_of_a_smaller_batch() -> None:
    surprising = measurement(sequence=9, batch=100, outcome=fits(700, 900.0, batch=100))
    plan = make_plan(a_calibration(measurements=(*measurements(), surprising)), effective_batch=128)
    assert plan.predicted_peak_bytes == 700 * MIB


def test_evaluation_counts_towards_the_peak() -> None:
    plan = make_plan(a_calibration(), effective_batch=8)
    assert plan.predicted_peak_bytes == 401 * MIB
    assert "an evaluation batch of 360" in plan.why["predicted_peak_bytes"]


def test_an_unmeasured_evaluation_uses_the_training_capacity() -> None:
    plan = make_plan(a_calibration(findings=(a_finding(eval=None, eval_memory=None),)))
    assert plan.eval_batch == TRAIN_CAPACITY
    assert "not measured" in plan.why["eval_batch"]


def test_gradients_that_stay_alive_during_accumulation_are_part_of_the_peak() -> None:
    without = make_plan(with_parameters(0), effective_batch=1000)
    beside = make_plan(with_parameters(10 * MIB), effective_batch=1000)
    assert beside.predicted_peak_bytes - without.predicted_peak_bytes == 10 * MIB


def test_large_gradients_reduce_the_micro_batch_size() -> None:
    plan = make_plan(with_parameters(100 * MIB), effective_batch=1024)
    assert sum(plan.micro_batches) == 1024
    assert plan.micro_batch < TRAIN_CAPACITY
    assert plan.predicted_peak_bytes <= BUDGET_BYTES
    assert plan.status == "derived"
    assert "gradients" in plan.why["micro_batch"]


def test_a_single_micro_batch_needs_no_memory_for_accumulated_gradients() -> None:
    assert make_plan(with_parameters(100 * MIB)).micro_batch == TRAIN_CAPACITY


def test_a_capacity_measured_with_accumulation_counts_gradients_once() -> None:
    finding = a_finding()
    accumulated = finding.model_copy(update={"train": finding.train.model_copy(update={"accumulated": True})})
    assert make_plan(with_parameters(100 * MIB, findings=(accumulated,)), effective_batch=1024).micro_batches == (512, 512)


def test_the_plan_warns_if_accumulated_gradients_exceed_the_budget() -> None:
    plan = make_plan(with_parameters(900 * MIB), effective_batch=1024)
    assert plan.micro_batches == (512, 512)
    assert plan.status == "derived"
    assert any("may exceed" in notice for notice in plan.notices)


def test_ranks_share_the_effective_batch() -> None:
    plan = make_plan(a_calibration(), effective_batch=2000, world_size=4)
    assert plan.micro_batches == (500,)
    assert sum(plan.micro_batches) * plan.world_size == plan.effective_batch
    assert make_plan(a_calibration(), world_size=3).effective_batch == 3 * TRAIN_CAPACITY


@given(effective=st.integers(min_value=1, max_value=5000), world=st.integers(min_value=1, max_value=8))
def test_every_plan_adds_up_to_the_effective_batch_within_the_capacity(effective: int, world: int) -> None:
    calibration = a_calibration()
    if effective % world:
        with pytest.raises(UsageError, match="evenly"):
            make_plan(calibration, effective_batch=effective, world_size=world)
        return
    plan = make_plan(calibration, effective_batch=effective, world_size=world)
    assert sum(plan.micro_batches) * world == effective
    assert max(plan.micro_batches) == plan.micro_batch <= TRAIN_CAPACITY
    assert len(plan.micro_batches) == plan.accumulation_steps
    assert plan.predicted_peak_bytes <= plan.budget_bytes


@pytest.mark.parametrize("effective", [0, -5])
def test_an_effective_batch_below_one_is_refused(effective: int) -> None:
    with pytest.raises(UsageError, match="below 1"):
        make_plan(a_calibration(), effective_batch=effective)


def test_an_invalid_world_size_is_rejected_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="world size 0"):
        make_plan(a_calibration(), world_size=0)
    with pytest.raises(UsageError, match="3 ranks") as caught:
        make_plan(a_calibration(), effective_batch=100, world_size=3)
    assert caught.value.try_ == "--effective-batch 99"


def test_a_plan_for_an_unmeasured_allocator_or_device_is_rejected() -> None:
    with pytest.raises(NoCalibration, match="tcmalloc") as caught:
        make_plan(a_calibration(), allocator="tcmalloc")
    assert "cpu with default" in caught.value.known
    assert "--allocator tcmalloc" in caught.value.try_
    with pytest.raises(NoCalibration, match="cuda"):
        make_plan(a_calibration(), device="cuda")


def test_a_plan_from_a_calibration_without_findings_is_rejected() -> None:
    with pytest.raises(NoCalibration) as caught:
        make_plan(a_calibration(status="partial", findings=()))
    assert "before it verified anything" in caught.value.known
    with pytest.raises(NoCalibration, match="no budget"):
        make_plan(a_calibration(budgets=()))


def test_the_plan_warns_if_too_little_memory_is_free() -> None:
    assert make_plan(a_calibration(), effective_batch=TRAIN_CAPACITY, free_bytes_now=GIB).notices == ()
    (notice,) = make_plan(a_calibration(), effective_batch=TRAIN_CAPACITY, free_bytes_now=300 * MIB).notices
    assert "only 300 MiB are free now" in notice
    assert "822 MiB" in notice or "823 MiB" in notice


def test_the_plan_reports_an_unsettled_search_and_a_batch_above_the_dataset_size() -> None:
    finding = a_finding()
    undone = finding.model_copy(update={"train": finding.train.model_copy(update={"undone": "512 to 544"})})
    plan = make_plan(a_calibration(status="unsettled", findings=(undone,)), effective_batch=2000)
    assert any("512 to 544" in notice for notice in plan.notices)
    assert any("1437 samples" in notice for notice in plan.notices)


def test_the_plan_reports_micro_batches_that_are_not_multiples() -> None:
    calibration = a_calibration(options=options(multiple_of=8))
    assert make_plan(calibration, effective_batch=1040).micro_batches == (352, 344, 344)
    assert make_plan(calibration, effective_batch=1040).notices == ()
    plan = make_plan(calibration, effective_batch=1001)
    assert any("multiples of 8" in notice for notice in plan.notices)


def test_every_value_of_a_plan_has_its_reason() -> None:
    plan = make_plan(a_calibration(), effective_batch=100)
    assert set(plan.why) == set(KEYS) - {"format"}
    assert all(plan.why.values())
    assert set(KEYS) | {
        "kind",
        "why",
        "notices",
        "unchecked",
        "undivided",
        "last_group",
        "last_group_error",
        "size_rule",
        "group_limits",
    } == set(Plan.model_fields)


def wide_machine(*, shm_mib: int = 4096, available: int = 64 * GIB, python: str = "3.11.15") -> dict[str, object]:
    environment = an_environment()
    return {
        "environment": an_environment(
            cpu=environment.cpu.model_copy(update={"cores": Fact[float](value=8.0, learned_from="affinity")}),
            memory=environment.memory.model_copy(update={"available_bytes": available}),
            shared_memory=SharedMemory(path="/dev/shm", size_bytes=shm_mib * MIB, free_bytes=shm_mib * MIB),
            software=environment.software.model_copy(update={"python": python}),
            optimal_threads=8,
            optimal_workers=3,
        ),
        "loader_workers": LoaderWorkers(),
    }


def with_sample_bytes(sample_bytes: float, **overrides: object) -> Calibration:
    facts = a_calibration().facts
    assert facts is not None
    return a_calibration(facts=facts.model_copy(update={"batch_bytes_per_sample": sample_bytes}), **overrides)


def test_a_plan_without_workers_has_no_worker_settings() -> None:
    plan = make_plan(a_calibration())
    assert (plan.num_workers, plan.prefetch_factor, plan.persistent_workers, plan.pin_memory) == (0, None, False, False)
    assert (plan.intra_op_threads, plan.interop_threads) == (2, 1)


def test_workers_are_planned_for_the_cores_if_memory_allows() -> None:
    plan = make_plan(a_calibration(**wide_machine()), effective_batch=256)
    assert (plan.num_workers, plan.prefetch_factor, plan.persistent_workers) == (3, 2, True)
    assert (plan.intra_op_threads, plan.interop_threads) == (8, 2)


def test_workers_that_were_not_tried_are_not_planned() -> None:
    plan = make_plan(a_calibration(**wide_machine() | {"loader_workers": None}), effective_batch=256)
    assert plan.num_workers == 0
    assert "were not tried" in plan.why["num_workers"]


def test_a_dataset_that_fails_with_workers_gets_no_workers_and_a_reason() -> None:
    tried = LoaderWorkers(why_none="the dataset hangs with workers")
    plan = make_plan(a_calibration(**wide_machine() | {"loader_workers": tried}), effective_batch=256)
    assert (plan.num_workers, plan.why["num_workers"]) == (0, "the dataset hangs with workers")


def test_workers_use_the_start_method_and_memory_of_the_trial() -> None:
    tried = LoaderWorkers(start="forkserver", why_start="Records.file is an open file", private_bytes=GIB, growth_bytes=GIB)
    plan = make_plan(a_calibration(**wide_machine() | {"loader_workers": tried}), effective_batch=256)
    assert plan.num_workers == 0
    assert "2.00 GiB" in plan.why["num_workers"]
    small = tried.model_copy(update={"growth_bytes": 0, "private_bytes": MIB})
    plan = make_plan(a_calibration(**wide_machine() | {"loader_workers": small}), effective_batch=64)
    assert (plan.num_workers, plan.multiprocessing_context) == (2, "forkserver"), "160 MiB each at least"
    assert plan.why["multiprocessing_context"] == "Records.file is an open file"


def test_unmeasured_workers_are_not_planned_at_the_capacity() -> None:
    plan = make_plan(a_calibration(**wide_machine()))
    assert plan.num_workers == 0
    assert "the training leaves" in plan.why["num_workers"]


def test_measured_workers_are_planned_because_the_peak_includes_their_memory() -> None:
    plan = make_plan(a_calibration(**wide_machine(), options=options(workers=2)))
    assert plan.num_workers == 2
    assert "measured with 2 workers" in plan.why["num_workers"]


def test_a_small_dev_shm_limits_the_prefetched_batches() -> None:
    machine = wide_machine(shm_mib=64)
    # 51 MiB may be used; a batch of 360 (evaluation is the larger one here) takes 8.6 MiB: five fit at once.
    plan = make_plan(with_sample_bytes(25_000, **machine), effective_batch=64)
    assert plan.prefetch_factor is not None
    assert (plan.num_workers * plan.prefetch_factor + 1) * 25_000 * EVAL_CAPACITY <= 0.8 * 64 * MIB
    assert plan.num_workers == 3
    assert plan.prefetch_factor == 1
    plan = make_plan(with_sample_bytes(100_000, **machine), effective_batch=64)
    assert plan.num_workers == 0
    assert "/dev/shm" in plan.why["num_workers"]


def test_fewer_workers_are_planned_if_memory_is_short() -> None:
    # 401 MiB at its peak (evaluation), 839 MiB of budget: fresh interpreters of 160 MiB fit twice, forked ones three times.
    plan = make_plan(a_calibration(**wide_machine(python="3.14.1")), effective_batch=64)
    assert plan.num_workers == 2
    assert plan.why["num_workers"] == "8 cores have room for 3 workers; memory has room for only 2"


def test_only_memory_limits_the_workers_without_dev_shm() -> None:
    machine = wide_machine()
    environment = machine["environment"]
    machine["environment"] = an_environment(optimal_workers=3, shared_memory=None)
    assert environment is not None
    assert make_plan(a_calibration(**machine), effective_batch=64).num_workers == 3


def on_a_gpu(*, with_host_budget: bool) -> Calibration:
    straight = MemoryModel(
        base_bytes=500 * MIB, ratio=1.0, shape=(ShapePoint(batch=1, bytes=1.0 * MIB),), source="measured", spread=0.0
    )
    gpu = Budget(
        device="cuda",
        limit_bytes=8 * GIB,
        others_bytes=GIB,
        margin_bytes=GIB,
        budget_bytes=6 * GIB,
        learned_from="torch.accelerator",
    )
    ran = Fits(
        peak=Peak(demand_bytes=2 * GIB, accelerator_bytes=5 * GIB, accelerator_allocated_bytes=4 * GIB),
        steps=3,
        step_s=0.5,
        samples_per_s=8000.0,
    )
    return a_calibration(
        **wide_machine(available=3 * GIB),
        chosen_device="cuda",
        budgets=(*(a_calibration().budgets if with_host_budget else ()), gpu),
        measurements=(measurement(device="cuda", batch=4000, outcome=ran),),
        findings=(
            Finding(
                device="cuda",
                allocator="default",
                train=Capacity(
                    batch=4000, peak_bytes=5 * GIB, samples_per_s=8000.0, measured_by=1, limited_by="accelerator-memory"
                ),
                eval=None,
                train_memory=straight,
                eval_memory=None,
            ),
        ),
    )


def test_a_gpu_plan_pins_memory_and_takes_workers_from_host_memory() -> None:
    plan = make_plan(on_a_gpu(with_host_budget=False))
    assert plan.device == "cuda"
    assert plan.pin_memory
    assert plan.predicted_peak_bytes == 5 * GIB, "the device's bytes, not the host's"
    assert plan.num_workers == 3, "3 GiB available, 2 GiB for the training process"
    assert make_plan(on_a_gpu(with_host_budget=True)).num_workers == 0, "the host's budget of 839 MiB is used up"


def raced(*times: tuple[int, float]) -> Calibration:
    """Timed under `default`: (micro-batch, samples per second), an update taking 1 ms."""
    steps = tuple(step_time(size, size / rate, update_s=0.001, steps=3) for size, rate in times)
    return a_calibration(speeds=(Speeds(device="cpu", allocator="default", times=steps, rounds=3, left=""),))


def test_the_throughput_objective_uses_the_fastest_size() -> None:
    plan = make_plan(raced((64, 900.0), (128, 1100.0), (256, 700.0)), effective_batch=512, objective="throughput")
    assert plan.micro_batches == (128, 128, 128, 128)
    assert (plan.objective, plan.limited_by) == ("throughput", "speed")
    assert plan.predicted_samples_per_s == pytest.approx(512 / (512 / 1100 + 0.001))
    assert plan.why["micro_batch"] == "the fastest size that was timed is 128"
    assert plan.why["limited_by"] == "larger micro-batches would not train faster"
    assert make_plan(raced((64, 900.0), (128, 1100.0)), effective_batch=512).micro_batches == (512,)


def test_the_fastest_size_never_exceeds_the_effective_batch() -> None:
    plan = make_plan(raced((16, 700.0), (64, 900.0), (128, 1100.0)), effective_batch=100, objective="throughput")
    assert plan.micro_batches == (50, 50)
    assert make_plan(raced((128, 1100.0)), effective_batch=100, objective="throughput").micro_batches == (100,)


def test_the_plan_uses_the_capacity_if_it_is_the_fastest_size() -> None:
    plan = make_plan(raced((64, 900.0), (TRAIN_CAPACITY, 1500.0)), objective="throughput")
    assert (plan.micro_batch, plan.limited_by) == (TRAIN_CAPACITY, "memory")


def test_the_throughput_objective_uses_the_largest_size_without_timings() -> None:
    plan = make_plan(a_calibration(), effective_batch=1024, objective="throughput")
    assert plan.micro_batches == (512, 512)
    assert "no size was timed with default" in plan.notices[0]
