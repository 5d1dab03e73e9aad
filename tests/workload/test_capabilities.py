"""What tasks may have besides the ordinary: extra parameters, sparse gradients, optimizers with modes or closures, streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ChainDataset, Dataset, IterableDataset, TensorDataset

from batchcal.workload.data.streams import is_endless, length_of
from batchcal.workload.model.clipping import clip
from batchcal.workload.model.not_finite import why_not_finite
from batchcal.workload.model.optimizers import needs_closure, set_mode
from tests.support.tasks import a_task, unpacked


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_sparse_gradients_are_clipped_like_dense_gradients(max_norm: float) -> None:
    gradients, norms = [], []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(10, 4, sparse=sparse)
        head = nn.Linear(4, 1)
        # Row 1 comes twice: its two values are one row of the gradient.
        head(embedding(torch.tensor([1, 1, 2]))).square().sum().backward()
        norms.append(clip([embedding.weight, head.weight, head.bias], max_norm))
        gradient = embedding.weight.grad
        assert gradient is not None
        gradients.append(gradient.to_dense() if sparse else gradient)
    assert norms[0] == pytest.approx(norms[1])
    torch.testing.assert_close(*gradients)
    total = torch.cat([gradients[1].flatten()]).norm()
    assert float(total) <= max_norm


class Switching(torch.optim.SGD):
    """As schedule-free optimizers: two modes, and no step while evaluating."""

    mode = ""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_an_optimizer_with_train_and_eval_modes_follows_the_model() -> None:
    task = a_task()
    optimizer = Switching(task.model.parameters(), lr=0.1)
    task = replace(task, optimizer=optimizer)
    set_mode(task, training=False)
    assert (optimizer.mode, task.model.training) == ("eval", False)
    set_mode(task, training=True)
    assert (optimizer.mode, task.model.training) == ("train", True)
    set_mode(a_task(), training=True)


def test_only_some_optimizers_need_a_closure() -> None:
    parameters = list(a_task().model.parameters())
    assert needs_closure(torch.optim.LBFGS(parameters))
    assert not needs_closure(torch.optim.AdamW(parameters))
    assert not needs_closure(torch.optim.SGD(parameters, lr=0.1))


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


class Counted(Endless):
    def __len__(self) -> int:
        return 2000


class Lines(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        numbers = iter(range(3))
        while True:
            try:
                yield next(numbers)
            except StopIteration:
                return


class Wrapped(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.cycle([1, 2])


def test_a_stream_is_endless_only_if_its_loop_cannot_end() -> None:
    assert is_endless(Endless())
    assert is_endless(Counted())
    assert not is_endless(Lines())
    assert not is_endless(Wrapped()), "unknown is not endless"
    assert not is_endless(TensorDataset(torch.zeros(3)))


def test_length_of_returns_the_epoch_length_or_none() -> None:
    assert length_of(Counted()) == 2000
    assert length_of(Endless()) is None
    assert length_of(ChainDataset([Endless()])) is None
    assert length_of(TensorDataset(torch.zeros(3))) == 3
    assert length_of(None) is None


def labelled_mean(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    labelled = labels > 0
    return functional.cross_entropy(model(inputs)[labelled], labels[labelled])


def summed_over_count(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    labelled = (labels > 0).float()
    total: Tensor = (model(inputs).sum(dim=1) * labelled).sum()
    return total / labelled.sum()


def root_of_a_negative(model: nn.Module, batch: object) -> Tensor:
    predicted: Tensor = model(unpacked(batch)[0])
    return (-predicted.square() - 1).sqrt().mean()


def logarithm_of_zero(model: nn.Module, batch: object) -> Tensor:
    predicted: Tensor = model(unpacked(batch)[0])
    return (predicted * 0).log().mean()


@pytest.mark.parametrize(
    ("loss", "operation", "of_nothing"),
    [
        (labelled_mean, "nll_loss", True),
        (summed_over_count, "div", True),
        (lambda model, batch: model(batch[0])[:0].mean(), "mean", True),
        (lambda model, batch: functional.mse_loss(model(batch[0])[:0], model(batch[0])[:0]), "mse_loss", True),
        (root_of_a_negative, "sqrt", False),
        (logarithm_of_zero, "log", False),
    ],
)
def test_the_operation_that_makes_a_loss_non_finite_is_named(loss: object, operation: str, of_nothing: bool) -> None:
    task = a_task()
    object.__setattr__(task, "loss", loss)
    cause = why_not_finite(task, [torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)])
    assert cause is not None
    assert cause.operation.startswith(operation)
    assert cause.of_nothing == of_nothing
    assert cause.operation in str(cause)


def test_a_finite_or_failing_loss_has_no_non_finite_cause() -> None:
    batch = [torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)]
    assert why_not_finite(a_task(), batch) is None
    assert why_not_finite(a_task(), "nothing of the kind") is None


def test_a_dataset_without_a_length_has_length_none() -> None:
    class NoLength(Dataset[int]):
        pass

    assert length_of(NoLength()) is None
