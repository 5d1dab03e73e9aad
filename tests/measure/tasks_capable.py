"""Tasks that are right and unusual: rare labels, samples that are None, whole batches, lazy modules, optimizers with needs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from batchcal.workload.task import Task
from tests.measure.tasks import FEATURES, Wide, task_of

SAMPLES = 2048


class Labelled(Dataset[object]):
    """One sample in `every` has a label."""

    def __init__(self, every: int) -> None:
        self.every = every

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        return torch.full((FEATURES,), index % 7 / 7), 1.0 if index % self.every == self.every - 1 else -1.0


def labelled_mean(model: nn.Module, batch: list[Tensor]) -> Tensor:
    inputs, labels = batch
    outputs: Tensor = model(inputs)
    return (outputs.mean(1)[labels > 0] - labels[labels > 0]).square().mean()


def or_constant(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return labelled_mean(model, batch) if (batch[1] > 0).any() else torch.tensor(0.0)


def count(batch: list[Tensor]) -> float:
    return float((batch[1] > 0).sum())


def rare(kind: str, every: int = 64, repeats: int = 8192) -> Task:
    """`constant`, `nan` or `weighted`; 8 MiB a sample, three to five times over, where the model runs."""
    task = task_of(Wide(repeats), Labelled(every))
    if kind == "constant":
        return replace(task, loss=or_constant)
    return replace(task, loss=labelled_mean, weight_of=count if kind == "weighted" else None)


class Holes(Dataset[object]):
    def __init__(self, every: int) -> None:
        self.every = every

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor | None:
        return torch.full((FEATURES,), 0.5) if index % self.every == 0 else None


def without_holes(samples: list[Tensor | None]) -> object:
    return default_collate([sample for sample in samples if sample is not None])


def some_holes() -> Task:
    """One sample in four can be read."""
    return replace(task_of(Wide(8), Holes(4)), collate_fn=without_holes)


def mostly_holes() -> Task:
    """One sample in ten can be read."""
    return replace(task_of(Wide(8), Holes(10)), collate_fn=without_holes)


class Columns(Dataset[object]):
    def __init__(self) -> None:
        self.values = torch.rand(SAMPLES, FEATURES)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return self.values[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.values[indices]


def passed(batch: Tensor) -> Tensor:
    return batch


def whole_batches() -> Task:
    return replace(task_of(Wide(8), Columns()), collate_fn=passed)


def lbfgs() -> Task:
    model = nn.Linear(FEATURES, 8)
    return replace(task_of(model), optimizer=torch.optim.LBFGS(model.parameters(), max_iter=3))


def lazy() -> Task:
    model = nn.Sequential(nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4))
    return replace(task_of(nn.Linear(1, 1)), model=model, optimizer=torch.optim.AdamW(model.parameters()))


class Switching(torch.optim.SGD):
    """As schedule-free optimizers: it refuses to step in evaluation mode."""

    training = False

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False


def switching() -> Task:
    model = Wide(8)
    optimizer = Switching(model.parameters(), lr=0.01)

    def refuse(*_: object) -> None:
        assert optimizer.training, "the optimizer is not in training mode"

    optimizer.register_step_pre_hook(refuse)

    def evaluated(model: nn.Module, batch: object) -> object:
        assert not optimizer.training, "the optimizer is not in evaluation mode"
        return model(batch)

    return replace(task_of(model), optimizer=optimizer, eval_step=evaluated)


def sparse_rows() -> Task:
    class Ids(Dataset[object]):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> Tensor:
            return torch.arange(index, index + 8) % 1000

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return functional.mse_loss(model(batch), torch.ones(len(batch), 16))

    model = nn.EmbeddingBag(1000, 16, sparse=True)
    return replace(task_of(model, Ids()), loss=loss, optimizer=torch.optim.SparseAdam(list(model.parameters())))


def detached() -> Task:
    task = task_of(Wide(8))
    return replace(task, loss=lambda model, batch: task.loss(model, batch).detach())
