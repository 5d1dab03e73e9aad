"""One optimizer step, however its samples are split, is the step of the undivided batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import UserCodeError
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.workload.step import make_scaler, prepare
from batchcal.workload.task import Task
from tests.support.tasks import a_task, cross_entropy, unpacked

CPU = torch.device("cpu")


def in_double(task: Task) -> Task:
    task.model.double()
    return task


def batches(*sizes: int) -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (200,), generator=generator)
    at = 0
    for size in sizes:
        yield MicroBatch([inputs[at : at + size], labels[at : at + size]], size)
        at += size


def parameters(task: Task) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


@pytest.mark.parametrize("sizes", [(25, 24, 24, 24), (97,), (1,) * 97, (50, 40, 7)])
def test_every_split_makes_the_step_of_the_undivided_batch(sizes: tuple[int, ...]) -> None:
    divided, undivided = in_double(a_task()), in_double(a_task())
    for _ in range(3):
        result = run_group(divided, batches(*sizes), device=CPU, scaler=None)
        whole = run_group(undivided, batches(97), device=CPU, scaler=None)
        assert result.loss == pytest.approx(whole.loss, rel=1e-12)
        assert (result.samples, result.weight, result.micro_batches) == (97, 97.0, len(sizes))
    torch.testing.assert_close(parameters(divided), parameters(undivided), rtol=1e-9, atol=1e-12)


def test_weights_that_are_not_samples_are_exact_too() -> None:
    """A loss that is a mean over tokens: samples count for as many tokens as they have."""

    def tokens(batch: object) -> Tensor:
        return unpacked(batch)[1] + 1

    def mean_over_tokens(model: nn.Module, batch: object) -> Tensor:
        inputs, labels = unpacked(batch)
        each = functional.cross_entropy(model(inputs), labels, reduction="none")
        return (each * tokens(batch)).sum() / tokens(batch).sum()

    def of_tokens(batch: object) -> float:
        return float(tokens(batch).sum())

    divided, undivided = (in_double(replace(a_task(), loss=mean_over_tokens, weight_of=of_tokens)) for _ in range(2))
    result = run_group(divided, batches(40, 3, 37), device=CPU, scaler=None)
    whole = run_group(undivided, batches(80), device=CPU, scaler=None)
    assert result.weight == whole.weight
    assert result.weight > 80
    torch.testing.assert_close(parameters(divided), parameters(undivided), rtol=1e-9, atol=1e-12)


def test_no_micro_batch_is_kept_while_the_next_one_is_made() -> None:
    class Watched:
        """A batch whose end can be seen."""

    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    task = a_task()

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Watched)
        return cross_entropy(model, [torch.randn(4, 8), torch.tensor([0, 1, 2, 0])])

    def made() -> Iterator[MicroBatch]:
        for _ in range(5):
            gc.collect()
            assert not alive, "the one before is still held"
            batch = Watched()
            alive.add(batch)
            held = [MicroBatch(batch, 4)]
            del batch
            yield held.pop()

    assert run_group(replace(task, loss=loss), made(), device=CPU, scaler=None).micro_batches == 5


def test_gradients_are_clear_after_a_step() -> None:
    task = a_task()
    task.model.double()
    run_group(task, batches(5, 5), device=CPU, scaler=None)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_a_group_of_nothing_is_a_mistake_and_no_step() -> None:
    task = a_task()
    before = parameters(task)
    with pytest.raises(ValueError, match="without micro-batches"):
        run_group(task, iter(()), device=CPU, scaler=None)
    assert torch.equal(before, parameters(task))


def test_a_group_that_weighs_nothing_is_the_users_mistake() -> None:
    task = in_double(replace(a_task(), weight_of=lambda batch: 0.0))
    with pytest.raises(UserCodeError, match="sum to 0"):
        run_group(task, batches(5), device=CPU, scaler=None)


@pytest.mark.gpu
def test_half_precision_with_a_scaler_trains_on_an_accelerator() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    task = replace(a_task(), autocast=torch.float16)
    prepare(task, device)
    scaler = make_scaler(task, device)
    inputs, labels = torch.randn(64, 8), torch.randint(0, 3, (64,))
    losses = [
        run_group(
            task,
            iter([MicroBatch([inputs[:40], labels[:40]], 40), MicroBatch([inputs[40:], labels[40:]], 24)]),
            device=device,
            scaler=scaler,
        ).loss
        for _ in range(60)
    ]
    assert losses[-1] < losses[0] * 0.8
