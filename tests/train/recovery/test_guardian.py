"""A pass that runs out of memory is undone and run again: what the optimizer sees is what it would have seen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import NothingFits
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.workload.task import Task
from tests.support.starving import Guarded, Memory
from tests.support.tasks import a_task, cross_entropy, unpacked

CPU = torch.device("cpu")


def a_model(memory: Memory, *, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    torch.manual_seed(5)
    layers: list[nn.Module] = [nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, memory, nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def an_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    match name:
        case "SGD":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        case "Adam":
            return torch.optim.Adam(model.parameters(), lr=0.01)
        case _:
            return torch.optim.AdamW(model.parameters(), lr=0.01)


def a_training(memory: Memory, *, dropout: float = 0.0, norm: bool = False, optimizer: str = "AdamW") -> Task:
    model = a_model(memory, dropout=dropout, norm=norm)
    return replace(a_task(), model=model, optimizer=an_optimizer(optimizer, model), loss=cross_entropy)


def micro_batches(*sizes: int) -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(sum(sizes), 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (sum(sizes),), generator=generator)
    at = 0
    for size in sizes:
        yield MicroBatch([inputs[at : at + size], labels[at : at + size]], size)
        at += size


def state(task: Task) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in task.model.state_dict().values()])


def steps(task: Task, guarded: Guarded | None, *, count: int = 3) -> Tensor:
    """Parameters and buffers after some steps of 24 + 8 + 8 samples."""
    torch.manual_seed(9)
    for _ in range(count):
        run_group(task, micro_batches(24, 8, 8), device=CPU, scaler=None, guard=guarded)
    return state(task)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize(("dropout", "norm"), [(0.0, False), (0.3, False), (0.3, True)])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("at", range(1, 10))
def test_a_retried_out_of_memory_failure_does_not_change_the_training(
    where: str, at: int, dropout: float, norm: bool, optimizer: str
) -> None:
    undisturbed = steps(a_training(Memory(), dropout=dropout, norm=norm, optimizer=optimizer), None)
    task = a_training(Memory(where, at=at), dropout=dropout, norm=norm, optimizer=optimizer)
    guarded = Guarded(task)
    assert torch.equal(steps(task, guarded), undisturbed)
    assert [(one.phase, one.action) for one in guarded.told] == [(where, "retry")]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("most", [23, 8, 5, 1])
def test_a_batch_that_never_fits_is_split_for_the_same_update(where: str, most: int) -> None:
    undisturbed = steps(a_training(Memory()), None)
    task = a_training(Memory(where, most=most))
    guarded = Guarded(task)
    torch.testing.assert_close(steps(task, guarded), undisturbed, rtol=1e-9, atol=1e-12)
    assert guarded.guardian.safe is not None
    assert guarded.guardian.safe <= most
    assert {one.action for one in guarded.told} == {"retry", "split"}, "at first it is expected to fit, and it does not"


def test_a_size_that_cannot_fit_is_split_without_an_attempt() -> None:
    memory = Memory("forward", most=10)
    task = a_training(memory)
    guarded = Guarded(task, most=10)
    torch.testing.assert_close(steps(task, guarded, count=1), steps(a_training(Memory()), None, count=1), rtol=1e-9, atol=1e-12)
    assert {one.phase for one in guarded.told} == {"preflight"}


def test_a_batchnorm_batch_is_split_only_if_the_user_allows_it() -> None:
    task = a_training(Memory("backward", most=10), norm=True)
    before = copy.deepcopy(task.model.state_dict())
    with pytest.raises(NothingFits, match=r"24 samples.*\n.*BatchNorm.*\n.*--on-oom split"):
        steps(task, Guarded(task), count=1)
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items()), "nothing of the pass is left"
    chosen = a_training(Memory("backward", most=12), norm=True)
    guarded = Guarded(chosen, batchnorm="split")
    steps(chosen, guarded, count=1)
    assert guarded.told[-1].action == "split"


def test_a_single_sample_that_does_not_fit_is_named() -> None:
    task = a_training(Memory("forward", most=0))
    batch = next(micro_batches(2))
    with pytest.raises(NothingFits, match=r"1 sample.*\n.*index 41"):
        run_group(task, [batch._replace(indices=(41, 17))], device=CPU, scaler=None, guard=Guarded(task))
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_a_batch_that_cannot_be_sliced_is_collated_again_from_its_samples() -> None:
    """The labels lie in one tensor with the total: row 0 is no sample."""

    def collate(samples: list[object]) -> tuple[Tensor, Tensor]:
        pairs = [unpacked(sample) for sample in samples]
        labels = torch.stack([label for _, label in pairs])
        return torch.stack([inputs for inputs, _ in pairs]).double(), torch.cat([torch.tensor([len(pairs)]), labels])

    def loss(model: nn.Module, batch: object) -> Tensor:
        inputs, labels = unpacked(batch)
        return functional.cross_entropy(model(inputs), labels[1:])

    def trained(memory: Memory) -> Tensor:
        task = replace(a_training(memory), loss=loss, collate_fn=collate)
        indices = tuple(range(40, 64))
        batch = collate([task.train_data[index] for index in indices])
        run_group(task, [MicroBatch(batch, 24, indices)], device=CPU, scaler=None, guard=Guarded(task))
        return state(task)

    torch.testing.assert_close(trained(Memory("forward", most=6)), trained(Memory()), rtol=1e-9, atol=1e-12)


def test_training_stops_if_the_batches_of_a_stream_cannot_be_split() -> None:
    task = replace(a_training(Memory("forward", most=6)), loss=lambda model, batch: model(batch["inputs"]).square().mean())
    batch = MicroBatch({"inputs": torch.randn(8, 8, dtype=torch.float64), "name": "whole"}, 8)
    with pytest.raises(NothingFits, match="cannot be cut"):
        run_group(task, [batch], device=CPU, scaler=None, guard=Guarded(task))


def test_a_user_error_is_not_treated_as_out_of_memory() -> None:
    def loss(model: nn.Module, batch: object) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x8 and 16x3)")

    task = replace(a_training(Memory()), loss=loss)
    guarded = Guarded(task)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        steps(task, guarded)
    assert guarded.told == []


class Counting(nn.Module):
    """Counts what it saw in a buffer, before memory runs out behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.seen: Tensor

    def forward(self, value: Tensor) -> Tensor:
        self.seen = self.seen + len(value)
        return value


@pytest.mark.parametrize("at", [1, 2, 5])
def test_module_buffers_are_restored_after_a_failed_pass(at: int) -> None:
    def counted(memory: Memory) -> Tensor:
        task = a_training(memory)
        task.model.insert(0, Counting()) if isinstance(task.model, nn.Sequential) else None
        return steps(task, Guarded(task))

    assert torch.equal(counted(Memory("backward", at=at)), counted(Memory()))


def test_gradients_of_earlier_passes_survive_a_failed_pass() -> None:
    """Memory runs out in the third micro-batch of a group, when two have left their gradients."""
    task = a_training(Memory("backward", at=3))
    run_group(task, micro_batches(24, 8, 8), device=CPU, scaler=None, guard=Guarded(task), clear_first=True)
    plain = a_training(Memory())
    run_group(plain, micro_batches(24, 8, 8), device=CPU, scaler=None, clear_first=True)
    for one, other in zip(task.model.parameters(), plain.model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("most", [10, 1 << 30])
def test_recovery_does_not_split_an_undivided_batch_and_gives_the_reason(most: int) -> None:
    task = a_training(Memory("backward", most=10))
    guarded = Guarded(task, most=most, undivided="the gradient would differ by 76 %: in-batch negatives")
    with pytest.raises(NothingFits, match="memory ran out in the backward pass over 24 samples") as raised:
        run_group(task, micro_batches(24), device=CPU, scaler=None, guard=guarded)
    assert "differ by 76 %" in raised.value.known
    assert "--accept-inexact" in raised.value.try_
    assert all(recovery.action == "retry" for recovery in guarded.told)
