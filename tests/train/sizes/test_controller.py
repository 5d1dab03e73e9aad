"""The micro-batch follows the memory there is, and does not swing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchcal.core.errors import UsageError
from batchcal.train.sizes.controller import BatchSizeController, ControlSettings
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler


def a_controller(
    ceiling: int, start: int | None = None, **settings: int
) -> tuple[GradientAccumulationScheduler, BatchSizeController]:
    scheduler = GradientAccumulationScheduler(ceiling, start=start)
    return scheduler, BatchSizeController(scheduler, ControlSettings(**settings))


def machine(base: float, each: float) -> Callable[[int], float]:
    """Share of the limit that a micro-batch takes."""
    return lambda size: base + each * size


def run(
    scheduler: GradientAccumulationScheduler, controller: BatchSizeController, memory: Callable[[int], float], batches: int
) -> list[int]:
    """The sizes of so many batches."""
    sizes = []
    for _ in range(batches):
        sizes.append(scheduler.micro_batch)
        controller.after(memory(scheduler.micro_batch), memory)
    return sizes


def test_the_micro_batch_grows_from_a_small_start_to_the_planned_size() -> None:
    scheduler, controller = a_controller(64, start=8)
    sizes = run(scheduler, controller, machine(0.1, 0.002), 60)
    assert sizes == [8] * 10 + [16] * 10 + [32] * 10 + [64] * 30


def test_the_micro_batch_does_not_grow_if_memory_is_predicted_to_be_short() -> None:
    scheduler, controller = a_controller(64, start=8)
    assert run(scheduler, controller, machine(0.1, 0.015), 200)[-1] == 32, "64 would take 106 %, 32 take 58 %"


def test_the_micro_batch_grows_back_to_the_plan_with_half_of_the_memory_used() -> None:
    scheduler, controller = a_controller(64, start=32)
    assert run(scheduler, controller, machine(0.45, 0.004), 50)[-1] == 64, "71 % is well below 85 %"


def test_the_micro_batch_shrinks_after_three_batches_in_a_row_above_the_threshold() -> None:
    scheduler, controller = a_controller(64)
    none = machine(0.1, 0.005)
    for used in (0.9, 0.9, 0.5, 0.9, 0.9):
        assert controller.after(used, none) is None
    change = controller.after(0.9, none)
    assert change is not None
    assert (change.was, change.now, scheduler.micro_batch) == (64, 32, 32)
    assert "90%" in change.why
    assert "3 batches in a row" in change.why


def test_the_micro_batch_does_not_oscillate_if_the_prediction_is_wrong() -> None:
    """The prediction is wrong: it says that 64 takes 60 %, and it takes 95 %."""
    scheduler, controller = a_controller(64)
    real, believed = machine(0.1, 0.0133), machine(0.1, 0.0078)
    sizes = []
    for _ in range(1000):
        sizes.append(scheduler.micro_batch)
        controller.after(real(scheduler.micro_batch), believed)
    assert sizes.count(64) <= 3 * 6, "tried again after 40, 80, 160, ... batches"
    assert sizes[-1] == 32


def test_a_size_that_did_not_fit_is_not_retried_immediately() -> None:
    scheduler, controller = a_controller(64)
    change = controller.ran_short("memory ran out with 64", safe=16)
    assert change is not None
    assert (change.now, change.why) == (16, "memory ran out with 64")
    assert run(scheduler, controller, machine(0.1, 0.002), 30)[-1] == 32, "32 was not too large"
    assert max(run(scheduler, controller, machine(0.1, 0.002), 9)) == 32
    assert run(scheduler, controller, machine(0.1, 0.002), 30)[-1] == 64


def test_a_micro_batch_of_one_sample_cannot_shrink() -> None:
    scheduler, controller = a_controller(1)
    assert controller.ran_short("memory ran out") is None
    assert scheduler.micro_batch == 1


def test_the_micro_batch_stays_between_one_sample_and_the_planned_size() -> None:
    scheduler = GradientAccumulationScheduler(48)
    assert scheduler.allowed(range(100)) == 100, "at the plan's size the plan decides"
    for size in range(-1, 60):
        scheduler.set(size)
        assert scheduler.micro_batch == min(max(size, 1), 48)


@pytest.mark.parametrize(("grow_below", "shrink_above"), [(0.9, 0.85), (-0.1, 0.5), (0.5, 1.2)])
def test_thresholds_that_contradict_each_other_are_refused(grow_below: float, shrink_above: float) -> None:
    with pytest.raises(UsageError, match="are not valid together"):
        ControlSettings(grow_below=grow_below, shrink_above=shrink_above)


def test_a_fixed_size_is_not_reported_as_changed() -> None:
    scheduler = GradientAccumulationScheduler(16, fixed=True)
    controller = BatchSizeController(scheduler, ControlSettings())
    assert [controller.after(0.99, lambda size: 0.99) for _ in range(10)] == [None] * 10
    assert controller.ran_short("memory ran out") is None
    assert scheduler.allowed(range(16)) == 16
