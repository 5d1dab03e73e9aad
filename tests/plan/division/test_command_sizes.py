"""Plans for commands: equal micro-batches, accumulation only if the command line sets it."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.command import CommandRecord
from batchcal.calibration.schema import Calibration
from batchcal.core.errors import UsageError
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.make import make_plan
from tests.support.calibrations import TRAIN_CAPACITY, a_calibration


def of_command(*placeholders: str, world_size: int = 1) -> Calibration:
    record = CommandRecord(words=("python", "t.py"), placeholders=placeholders, loader_workers=3, world_size=world_size)
    return a_calibration().model_copy(update={"command": record})


def test_micro_batches_are_equal_and_their_sum_is_the_effective_batch() -> None:
    plan = make_plan(of_command("batch_size", "accumulation_steps"), effective_batch=1200, objective="memory")
    assert len(set(plan.micro_batches)) == 1
    assert plan.micro_batch <= TRAIN_CAPACITY
    assert plan.micro_batch * plan.accumulation_steps == 1200


def test_an_effective_batch_without_equal_micro_batches_is_rejected() -> None:
    calibration = of_command("batch_size", "accumulation_steps")
    with pytest.raises(DivisionRefused, match="equal micro-batches") as refused:
        make_plan(calibration, effective_batch=1009, min_micro_batch=300)
    assert "--effective-batch 1" in refused.value.try_
    prime = make_plan(calibration, effective_batch=1009)
    assert prime.micro_batches == (1,) * 1009
    assert any("have no divisor between 2 and" in text for text in prime.notices)


def test_a_batch_that_does_not_fit_is_rejected_if_the_command_cannot_accumulate() -> None:
    with pytest.raises(DivisionRefused, match="sets no accumulation") as refused:
        make_plan(of_command("batch_size"), effective_batch=1200)
    assert f"--effective-batch {TRAIN_CAPACITY}" in refused.value.try_
    assert make_plan(of_command("batch_size"), effective_batch=300).micro_batches == (300,)


def test_workers_are_those_that_the_command_starts_itself() -> None:
    assert make_plan(of_command("batch_size"), effective_batch=64).num_workers == 3


def test_the_effective_batch_is_shared_by_the_processes_of_the_command() -> None:
    plan = make_plan(of_command("batch_size", world_size=2), effective_batch=600)
    assert (plan.world_size, plan.micro_batches) == (2, (300,))
    with pytest.raises(UsageError, match="processes of the command were 2"):
        make_plan(of_command("batch_size", world_size=2), effective_batch=600, world_size=3)
