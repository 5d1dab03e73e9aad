"""Trainings of tasks that do not take every batch size: each batch has such a size, or the training does not begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.utils.data import default_collate

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.errors import Interrupted, UsageError
from batchcal.runtime.batches import MicroBatch
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.train.recovery.splitter import Splitter
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy, unpacked
from tests.support.trainings import SignalAt

EVEN = SizeRule(multiple_of=2, least=2)
STATEFUL = SizeRule(one_size=True)
FIXED = SizeRule(least=16, most=16)


def checked(rule: SizeRule, samples: int, *, eval_samples: int = 0) -> Task:
    """A task whose loss fails at sizes that `rule` does not admit, in training and in evaluation."""
    sizes: set[int] = set()

    def loss(model: nn.Module, batch: object) -> Tensor:
        inputs, _ = unpacked(batch)
        sizes.add(len(inputs))
        if not rule.admits(len(inputs)) or (rule.one_size and len(sizes) > 1):
            raise ValueError(f"no batch of {len(inputs)}")
        return cross_entropy(model, batch)

    task = replace(a_task(samples, eval_samples=eval_samples or 16), loss=loss, metrics=None)
    return task if eval_samples else replace(task, eval_data=None)


@pytest.mark.parametrize(("rule", "samples", "left_out"), [(STATEFUL, 100, 4), (FIXED, 100, 4), (EVEN, 101, 5)])
def test_an_invalid_size_of_the_last_group_is_rejected_before_training(rule: SizeRule, samples: int, left_out: int) -> None:
    plan = a_plan(16, 16, size_rule=rule, last_group=(left_out,), last_group_error=f"the task {rule.text}", eval_batch=16)
    with pytest.raises(UsageError, match="last group") as refused:
        train(checked(rule, samples), plan)
    assert refused.value.exit_code == 2
    assert "--drop-last" in refused.value.try_
    assert rule.text in refused.value.known
    result = train(checked(rule, samples, eval_samples=32), plan, TrainOptions(drop_last=True, epochs=2))
    assert [epoch.samples for epoch in result.epochs] == [96, 96]
    assert result.epochs[0].evaluation["loss"] is not None


def test_an_invalid_size_of_the_last_evaluation_batch_is_rejected_before_training() -> None:
    plan = a_plan(16, size_rule=EVEN, eval_batch=16)
    with pytest.raises(UsageError, match="the evaluation ends with a batch of 3 samples") as refused:
        train(checked(EVEN, 96, eval_samples=35), plan)
    assert "--drop-last" in refused.value.try_
    result = train(checked(EVEN, 96, eval_samples=35), plan, TrainOptions(drop_last=True))
    assert result.epochs[0].samples == 96


def test_a_smaller_last_evaluation_batch_of_a_valid_size_is_accepted() -> None:
    result = train(checked(EVEN, 96, eval_samples=38), a_plan(16, size_rule=EVEN, eval_batch=16))
    assert result.epochs[0].evaluation["loss"] is not None


def test_a_small_start_uses_sizes_that_the_task_accepts() -> None:
    result = train(checked(EVEN, 96), a_plan(16, size_rule=EVEN), TrainOptions(start_micro_batch=5))
    assert result.epochs[0].samples == 96


@pytest.mark.parametrize(("samples", "parts"), [(8, {4}), (6, {4, 2}), (14, {8, 6})])
def test_a_batch_that_does_not_fit_is_divided_into_sizes_that_the_task_accepts(samples: int, parts: set[int]) -> None:
    task = checked(EVEN, 100)
    splitter = Splitter(task.train_data, task.collate_fn, EVEN)
    batch = default_collate([task.train_data[index] for index in range(samples)])
    halves = splitter.halves(MicroBatch(batch, samples, tuple(range(samples))))
    assert halves is not None
    assert {half().samples for half in halves} == parts


@pytest.mark.parametrize("rule", [STATEFUL, FIXED])
def test_a_batch_whose_halves_the_task_does_not_accept_is_not_divided(rule: SizeRule) -> None:
    task = checked(rule, 100)
    batch = default_collate([task.train_data[index] for index in range(16)])
    assert Splitter(task.train_data, task.collate_fn, rule).halves(MicroBatch(batch, 16, tuple(range(16)))) is None


@pytest.mark.parametrize(
    ("rule", "options", "name"),
    [
        (STATEFUL, TrainOptions(start_micro_batch=4), "start_micro_batch"),
        (FIXED, TrainOptions(start_micro_batch=4), "start_micro_batch"),
        (EVEN, TrainOptions(batching="bucketed"), "batching"),
    ],
)
def test_options_that_produce_invalid_batch_sizes_are_rejected(rule: SizeRule, options: TrainOptions, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} divides") as refused:
        train(checked(rule, 96), a_plan(16, size_rule=rule), options)
    assert rule.text in refused.value.known
    assert "--accept-inexact" not in refused.value.try_


def test_an_invalid_last_group_of_a_resumed_epoch_is_rejected_before_training(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(checked(STATEFUL, 96), a_plan(12, size_rule=STATEFUL), checkpoint=checkpoint, progress=SignalAt("step", 1))
    plan = a_plan(16, size_rule=STATEFUL)
    with pytest.raises(UsageError, match="the resumed epoch ends with a group of 4 samples") as refused:
        train(checked(STATEFUL, 96), plan, checkpoint=checkpoint, resume=True)
    assert "only one batch size" in refused.value.known
    assert "--effective-batch 12, as before; or --drop-last" in refused.value.try_
    result = train(checked(STATEFUL, 96), plan, TrainOptions(drop_last=True), checkpoint=checkpoint, resume=True)
    assert result.epochs[0].samples == 92
