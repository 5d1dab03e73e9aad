"""Gradients of a group are those of the undivided batch, in a loop of one's own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from batchcal.core.errors import UsageError
from batchcal.runtime.accumulate import accumulate, groups
from batchcal.runtime.loader import make_loader
from tests.support.plans import a_plan


class AsStream(IterableDataset[object]):
    """The samples of another dataset, which then cannot say how many they are."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[object]:
        return (self.dataset[index] for index in range(len(self.dataset)))


def a_dataset(samples: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(samples, 5, dtype=torch.float64, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    )


def a_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def loss_of(model: nn.Module, batch: object) -> Tensor:
    assert isinstance(batch, list | tuple)
    inputs, labels = batch
    return functional.cross_entropy(model(inputs), labels)


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("samples", [97 * 2, 97 + 40, 97 + 1, 5])
@pytest.mark.parametrize("as_stream", [False, True])
def test_the_gradients_of_each_group_equal_the_gradients_of_the_undivided_batch(samples: int, as_stream: bool) -> None:
    plan, dataset = a_plan(25, 24, 24, 24), a_dataset(samples)
    divided, undivided = a_model(), a_model()
    source: Dataset[object] = AsStream(dataset) if as_stream else dataset
    loader = make_loader(plan, source, shuffle=False)
    at = 0
    for group in accumulate(plan, loader):
        taken = 0
        for batch, weight in group:
            (weight * loss_of(divided, batch)).backward()
            taken += round(weight * 10_000)
        assert abs(taken - 10_000) <= 4, "the weights of a group sum to one"
        end = min(at + 97, samples)
        loss_of(undivided, dataset[at:end]).backward()
        torch.testing.assert_close(gradients(divided), gradients(undivided), rtol=1e-12, atol=1e-12)
        divided.zero_grad()
        undivided.zero_grad()
        at = end
    assert at == samples, "every sample was part of a step"


class Watched:
    """A batch whose end can be seen."""


class Hundred(Dataset[object]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> object:
        return index


class HundredInOrder(IterableDataset[object]):
    def __iter__(self) -> Iterator[object]:
        return iter(range(100))


@pytest.mark.usefixtures("quick_collections")
@pytest.mark.parametrize("dataset", [Hundred(), HundredInOrder()], ids=["sized", "stream"])
def test_no_batch_is_kept_in_memory_while_the_next_batch_is_collated(dataset: Dataset[object]) -> None:
    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    most: list[int] = []

    def collate(samples: list[object]) -> Watched:
        gc.collect()
        most.append(len(alive))
        batch = Watched()
        alive.add(batch)
        return batch

    plan = a_plan(10, 10, 10)
    for group in groups(make_loader(plan, dataset, collate_fn=collate)):
        for micro_batch in group.micro_batches:
            assert isinstance(micro_batch.batch, Watched)
            del micro_batch
    # Of a stream the samples of the first batch are collated twice, to try whether its batches may be cut.
    assert most == [0] * (10 if isinstance(dataset, Hundred) else 11)
    if isinstance(dataset, Hundred):
        most.clear()
        for shares in accumulate(plan, make_loader(plan, dataset, collate_fn=collate)):
            for batch, _ in shares:
                assert isinstance(batch, Watched)
                del batch
        assert most == [0] * 10


@pytest.mark.parametrize("dataset", [Hundred(), HundredInOrder()], ids=["sized", "stream"])
def test_unread_batches_of_a_group_do_not_join_the_next_group(dataset: Dataset[object]) -> None:
    plan = a_plan(10, 10, 10)
    firsts = []
    for group in accumulate(plan, make_loader(plan, dataset, shuffle=False)):
        for batch, _ in group:
            assert isinstance(batch, Tensor)
            firsts.append(int(batch[0]))
            break
    assert firsts == [0, 30, 60, 90]


@pytest.mark.parametrize(("count", "sizes"), [(60, [3, 3]), (70, [3, 3, 1]), (85, [3, 3, 3]), (9, [1])])
def test_the_last_group_of_a_stream_has_the_remaining_samples(count: int, sizes: list[int]) -> None:
    class Some(IterableDataset[object]):
        def __iter__(self) -> Iterator[object]:
            return iter(range(count))

    plan = a_plan(10, 10, 10)
    assert [len(list(group)) for group in accumulate(plan, make_loader(plan, Some()))] == sizes


def test_the_second_pass_has_the_same_weights_as_the_first() -> None:
    plan = a_plan(30, 30)
    loader = make_loader(plan, Hundred())
    passes = [[[round(weight, 6) for _, weight in group] for group in accumulate(plan, loader)] for _ in range(2)]
    assert passes[0] == passes[1] == [[0.5, 0.5], [0.5, 0.5]]


def test_a_loader_that_was_not_made_for_the_plan_is_rejected() -> None:
    with pytest.raises(UsageError, match="made for the plan"):
        accumulate(a_plan(10), DataLoader(Hundred(), batch_size=10))
    with pytest.raises(UsageError, match="another plan"):
        accumulate(a_plan(10), make_loader(a_plan(5, 5), Hundred()))
