"""What a training step is said to take, for which mix of task types."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.extras.batching.estimate import TrainingMemory, estimate_training_memory
from batchcal.extras.batching.task_mix import Mix
from batchcal.workload.collator import HeterogeneousBatch
from batchcal.workload.examples import multiimage
from batchcal.workload.task import Task
from tests.support.tasks import a_task

CPU = torch.device("cpu")


def studies(samples: int = 60) -> Task:
    """A third each of T1, T2 and T3, with one, two and three volumes a sample."""
    torch.manual_seed(0)
    return multiimage.task(CPU, samples=samples, width=2)


def told(task: Task, batch_size: int = 12, *, distribution: Mapping[str, float] | None = None) -> TrainingMemory:
    return estimate_training_memory(task, batch_size, distribution=distribution, look_limit_s=30.0)


def test_memory_is_estimated_for_each_task_type() -> None:
    found = told(studies())
    assert {name: group.share for name, group in found.groups.items()} == pytest.approx({"T1": 1 / 3, "T2": 1 / 3, "T3": 1 / 3})
    alone = [group.alone.bytes for group in found.groups.values() if group.alone is not None]
    assert len(alone) == 3
    # More volumes a sample: in proportion, but for what they are padded to.
    assert alone[0] < 0.7 * alone[1] < 0.6 * alone[2]
    assert alone[0] < found.mean.bytes < alone[2] <= found.worst.bytes
    assert found.notes == ()
    assert found.status == "predicted"


def test_static_memory_is_the_sum_of_parameters_gradients_optimizer_and_buffers() -> None:
    task = studies()
    found = told(task)
    parameters = sum(one.nbytes for one in task.model.parameters())
    assert found.parameter_bytes == found.gradient_bytes == parameters
    assert found.optimizer_bytes == pytest.approx(2 * parameters, rel=0.01)
    assert found.static_bytes == 2 * parameters + found.optimizer_bytes + found.buffer_bytes
    assert found.total_bytes == found.static_bytes + found.mean.bytes
    assert found.worst_total_bytes == found.static_bytes + found.worst.bytes


def test_the_estimate_depends_on_the_task_mix() -> None:
    task = studies()
    as_it_is = told(task)
    small = told(task, distribution={"T1": 3.0, "T2": 1.0})
    large = told(task, distribution={"T3": 1.0})
    assert small.mean.bytes < as_it_is.mean.bytes < large.mean.bytes
    assert {name: group.share for name, group in small.groups.items()} == {"T1": 0.75, "T2": 0.25}
    assert large.groups["T3"].alone == large.mean
    # What is left out is left out of the worst case too.
    assert small.worst.bytes < as_it_is.worst.bytes


def test_activation_memory_grows_in_proportion_to_the_batch_size() -> None:
    task = studies(20)
    eight, eighty = told(task, 8), told(task, 80)
    assert eighty.worst.activation_bytes == pytest.approx(10 * eight.worst.activation_bytes, rel=0.25)


def test_an_estimate_does_not_change_a_later_training() -> None:
    results: list[list[float]] = []
    for asks in (False, True):
        task = studies(12)
        assert task.collate_fn is not None
        torch.manual_seed(1)
        random.seed(1)
        if asks:
            told(task, 4)
        losses: list[float] = [random.random(), float(torch.rand(()))]
        for _ in range(3):
            loss = task.loss(task.model, task.collate_fn([task.train_data[index] for index in range(6)]))
            loss.backward()
            task.optimizer.step()
            task.optimizer.zero_grad()
            losses.append(loss.item())
        results.append(losses)
    assert results[0] == results[1]


def test_a_task_without_types_has_a_single_group_named_all() -> None:
    found = told(a_task(40))
    assert list(found.groups) == ["all"]
    assert found.groups["all"].share == 1.0
    # Eight inputs and a label.
    assert found.groups["all"].mean_cost == 9.0
    assert found.groups["all"].alone == found.mean
    assert found.mean.batch_bytes == 12 * (8 * 4 + 8)


def test_a_step_that_needs_all_task_types_is_estimated_for_the_mix_only() -> None:
    def needs_all(model: torch.nn.Module, batch: HeterogeneousBatch) -> Tensor:
        losses = multiimage.losses(model, batch)
        return losses["T1"] + losses["T2"] + losses["T3"]

    found = told(replace(studies(), loss=needs_all))
    assert [group.alone for group in found.groups.values()] == [None, None, None]
    assert found.mean.bytes > 0
    assert any("a batch of only 'T1' samples cannot be traced" in note for note in found.notes)


def test_a_step_that_reads_tensor_values_is_rejected_and_suggests_calibrate() -> None:
    task = a_task(40)
    peeping = replace(task, loss=lambda model, batch: model(batch[0]).square().mean() * float(batch[1].sum()))
    with pytest.raises(UserCodeError, match="cannot run on fake tensors") as caught:
        told(peeping)
    assert "calibrate" in caught.value.try_


class Stream(IterableDataset[object]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(30):
            yield torch.zeros(8), torch.tensor(1)


def test_a_stream_is_estimated_from_its_first_samples() -> None:
    found = told(replace(a_task(), train_data=Stream()))
    assert found.mean == found.worst
    assert found.notes == ("the data is a stream: its first 30 samples represent all samples",)


class Nothing(Dataset[object]):
    def __len__(self) -> int:
        return 0


def test_invalid_arguments_of_an_estimate_are_rejected() -> None:
    task = studies(30)
    with pytest.raises(UsageError, match="a batch of 0 samples"):
        told(task, 0)
    with pytest.raises(UsageError, match="no loaded sample has the task type 'T9'") as caught:
        told(task, distribution={"T9": 1.0})
    assert caught.value.known == "the task types are T1, T2, T3"
    for share in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="0 or more"):
            told(task, distribution={"T1": share})
    with pytest.raises(UserCodeError, match="is empty"):
        told(replace(a_task(), train_data=Nothing()))


def sizes_of(batch: object) -> list[int]:
    assert isinstance(batch, list)
    return batch


class Numbers(Dataset[object]):
    """Sample i is i, costs i, and is `even` or `odd`."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return index


def numbers(*, listed: bool = False) -> Task:
    return replace(
        a_task(),
        train_data=Numbers(),
        collate_fn=list,
        size_of=[float(index) for index in range(100)] if listed else float,
        group_of=lambda number: "odd" if number % 2 else "even",
    )


@pytest.mark.parametrize("listed", [False, True])
def test_typical_batches_spread_over_costs_and_largest_batches_take_the_highest(listed: bool) -> None:
    mix = Mix.look(numbers(listed=listed), 5, limit_s=30.0, seed=0)
    assert sizes_of(mix.largest(5, {"odd": 1.0})) == [99, 97, 95, 93, 91]
    assert sorted(sizes_of(mix.typical(4, {"odd": 0.5, "even": 0.5}))) == [24, 25, 74, 75]
    assert mix.mean_cost("even") == 49.0
    assert len(sizes_of(mix.typical(7, {"odd": 0.3, "even": 0.7}))) == 7
    assert sum(number % 2 for number in sizes_of(mix.typical(10, {"odd": 0.3, "even": 0.7}))) == 3


def test_a_batch_larger_than_its_group_repeats_the_largest_sample() -> None:
    mix = Mix.look(numbers(), 5, limit_s=30.0, seed=0)
    assert sizes_of(mix.largest(52, {"odd": 1.0}))[-3:] == [1, 99, 99]


def test_listed_costs_identify_the_largest_sample_within_a_short_time_limit() -> None:
    mix = Mix.look(numbers(listed=True), 1, limit_s=-1.0, seed=0)
    assert len(mix.sampled) == 1
    assert sizes_of(mix.largest(1, {"odd": 1.0})) == [99]
    assert list(mix.notes()) == ["1 of 100 samples were loaded: a larger one may exist"]
