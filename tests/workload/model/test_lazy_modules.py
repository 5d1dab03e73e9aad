"""Tasks that need care before the first step: lazy modules are initialised, and what is not supported is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from batchcal.core.errors import UserCodeError
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.model.lazy_modules import initialise_lazy
from batchcal.workload.spec.unsupported import refuse_unsupported
from batchcal.workload.task import Task
from tests.support.tasks import a_task, cross_entropy, points, unpacked

CPU = torch.device("cpu")


def a_lazy_task(**changes: object) -> Task:
    torch.manual_seed(1)
    model = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.BatchNorm1d(16), nn.Tanh(), nn.LazyLinear(3))
    task = replace(a_task(), model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.02))
    for name, value in changes.items():
        object.__setattr__(task, name, value)
    return task


class InOrder(IterableDataset[object]):
    def __iter__(self) -> Iterator[object]:
        data = points(20)
        return (data[index] for index in range(20))


class Holes(Dataset[object]):
    data: ClassVar[Dataset[object]] = points(20)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> object:
        return None if index < 5 else self.data[index]


def even_only(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    if len(inputs) % 8:
        raise ValueError("batches of 8, please")
    return functional.cross_entropy(model(inputs), labels)


@pytest.mark.parametrize("changes", [{}, {"train_data": InOrder()}, {"train_data": Holes()}, {"loss": even_only}])
def test_lazy_modules_are_initialized_with_the_first_batch(changes: dict[str, object]) -> None:
    task = a_lazy_task(**changes)
    initialise_lazy(task, CPU)
    assert not any(is_lazy(parameter) for parameter in task.model.parameters())
    assert next(task.model.parameters()).shape == (16, 8)
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    inputs, labels = default_collate([points(20)[index] for index in range(16)])
    cross_entropy(task.model, [inputs, labels]).backward()
    task.optimizer.step()
    after = list(task.model.parameters())
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True)), "the optimizer holds the same parameters"


def test_initializing_lazy_modules_does_not_change_batch_norm_statistics() -> None:
    task = a_lazy_task()
    initialise_lazy(task, CPU)
    for name, buffer in task.model.named_buffers():
        expected = 1.0 if name.endswith("running_var") else 0.0
        assert torch.equal(buffer.float(), torch.full_like(buffer, expected, dtype=torch.float32)), name


def test_a_model_without_lazy_modules_runs_no_batch() -> None:
    def fails(model: nn.Module, batch: object) -> Tensor:
        raise AssertionError("the loss was computed")

    initialise_lazy(replace(a_task(), loss=fails), CPU)


def test_a_first_batch_that_fails_is_a_user_error() -> None:
    def fails(model: nn.Module, batch: object) -> Tensor:
        raise KeyError("pixels")

    with pytest.raises(UserCodeError, match="first batch of a model with lazy modules raised KeyError"):
        initialise_lazy(a_lazy_task(loss=fails), CPU)


def test_the_facts_of_an_initialized_task_include_its_parameter_count() -> None:
    task = a_lazy_task()
    initialise_lazy(task, CPU)
    assert WorstCase.of(task, "train", limit_s=1.0, seed=0).facts(task).parameters == 8 * 16 + 16 + 4 * 16 + 16 * 3 + 3


def changed(**changes: object) -> Task:
    task = a_task()
    for name, value in changes.items():
        object.__setattr__(task, name, value)
    return task


def sgd(task: Task) -> torch.optim.Optimizer:
    return torch.optim.SGD(task.model.parameters(), lr=0.1)


@pytest.mark.parametrize("several", [list, tuple, lambda two: dict(zip("ab", two, strict=True))])
def test_several_optimizers_are_rejected_with_a_suggestion(several: type) -> None:
    held = several([sgd(a_task()), torch.optim.AdamW(a_task().model.parameters())])
    with pytest.raises(UserCodeError, match=r"2 optimizers \(SGD, AdamW\)") as refused:
        refuse_unsupported(changed(optimizer=held), "train.py:task")
    assert "parameter group" in refused.value.try_


@pytest.mark.parametrize("name", ["train_data", "eval_data"])
def test_a_data_loader_instead_of_a_dataset_is_rejected_with_a_suggestion(name: str) -> None:
    with pytest.raises(UserCodeError, match=f"whose {name} is a DataLoader") as refused:
        refuse_unsupported(changed(**{name: DataLoader(TensorDataset(torch.zeros(4)))}), "train.py:task")
    assert f"{name}=loader.dataset" in refused.value.try_


def test_an_optimizer_with_a_closure_is_rejected_with_float16_autocast() -> None:
    task = a_task()
    optimizer = torch.optim.LBFGS(task.model.parameters())
    with pytest.raises(UserCodeError, match=r"LBFGS and autocast=torch\.float16"):
        refuse_unsupported(replace(task, optimizer=optimizer, autocast=torch.float16), "train.py:task")
    refuse_unsupported(replace(task, optimizer=optimizer), "train.py:task")
