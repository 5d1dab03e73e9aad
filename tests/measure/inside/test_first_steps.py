"""The first steps of a task find samples that it learns from; what a task cannot learn from is reported by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from batchcal.core.errors import UserCodeError
from batchcal.measure.inside.first_steps import DETACHED, FirstSteps, first_steps
from batchcal.measure.inside.subject import Subject
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.task import Task
from tests.support.tasks import a_task, cross_entropy, unpacked

CPU = torch.device("cpu")
SIZE = 4


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine looks at as many batches."""
    monkeypatch.setattr("batchcal.measure.inside.first_steps.LOOK_LIMIT_S", 60.0)


class Rarely(Dataset[object]):
    """One sample in 16 is labelled."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> object:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(8, generator=generator), index % 3 if index % 16 == 9 else -1


def constant(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    labelled = labels >= 0
    return functional.cross_entropy(model(inputs)[labelled], labels[labelled]) if labelled.any() else torch.tensor(0.0)


def mean(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    return functional.cross_entropy(model(inputs), labels, ignore_index=-1)


def times_zero(model: nn.Module, batch: object) -> Tensor:
    """As losses that keep the graph: all parameters have a gradient, which is zero."""
    inputs, labels = unpacked(batch)
    labelled = labels >= 0
    predicted: Tensor = model(inputs)
    return functional.cross_entropy(predicted[labelled], labels[labelled]) if labelled.any() else predicted.sum() * 0


def labelled(batch: object) -> float:
    return float((unpacked(batch)[1] >= 0).sum())


def a_rare_task(**changes: object) -> Task:
    task = replace(a_task(), train_data=Rarely(), eval_data=None)
    for name, value in changes.items():
        object.__setattr__(task, name, value)
    return task


def looked(task: Task) -> tuple[FirstSteps, WorstCase]:
    subject = Subject.of(task, CPU)
    worst = WorstCase.of(task, "train", limit_s=5.0, seed=0)
    # No labelled sample is among the first.
    worst.order = tuple(sorted(worst.order, key=lambda index: (index % 16 == 9) * index))
    return first_steps(subject, worst, SIZE), worst


@pytest.mark.parametrize(
    "changes", [{"loss": constant}, {"loss": mean}, {"loss": mean, "weight_of": labelled}, {"loss": times_zero}]
)
def test_samples_with_a_gradient_are_ordered_first(changes: dict[str, object]) -> None:
    steps, worst = looked(a_rare_task(**changes))
    assert worst.order[0] % 16 == 9
    assert sorted(worst.order) == list(range(256)), "none is lost"
    assert steps.lessons["gradient"] == 1
    assert all(bool(torch.isfinite(parameter).all()) for parameter in a_rare_task().model.parameters())


def test_a_division_by_zero_in_a_mean_loss_is_reported_in_a_note() -> None:
    task = a_rare_task(loss=mean)
    steps, _ = looked(task)
    (note,) = steps.notes()
    assert "nll_loss" in note
    assert "divides by 0" in note
    assert "weight_of" in note
    assert all(bool(torch.isfinite(parameter).all()) for parameter in task.model.parameters()), "no NaN reached them"


def test_an_ordinary_task_keeps_its_order_and_has_no_note() -> None:
    subject = Subject.of(a_task(), CPU)
    worst = WorstCase.of(subject.task, "train", limit_s=5.0, seed=0)
    before = worst.order
    steps = first_steps(subject, worst, SIZE)
    assert (worst.order, steps.tried, steps.notes()) == (before, 1, ())


def test_a_loss_with_a_zero_gradient_is_reported_in_a_note() -> None:
    steps, _ = looked(replace(a_task(256), loss=lambda model, batch: cross_entropy(model, batch) * 0))
    (note,) = steps.notes()
    assert "the gradient of the loss is zero" in note


def test_a_loss_that_is_always_nan_is_reported_in_a_note() -> None:
    steps, _ = looked(replace(a_task(256), loss=lambda model, batch: (cross_entropy(model, batch) - 1e9).log()))
    assert "NaN or infinite: the first NaN or infinite value is a result of log" in steps.notes()[0]


def test_a_detached_loss_is_rejected_after_a_few_batches() -> None:
    tried: list[int] = []

    def detached(model: nn.Module, batch: object) -> Tensor:
        tried.append(len(unpacked(batch)[0]))
        return cross_entropy(model, batch).detach()

    with pytest.raises(UserCodeError, match="no gradient flows back"):
        looked(replace(a_task(256), loss=detached))
    assert len(tried) == DETACHED


class Together(Dataset[object]):
    """The labelled samples are the last of many."""

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> object:
        return torch.randn(8, generator=torch.Generator().manual_seed(index)), index % 3 if index >= 19_000 else -1


def test_labeled_samples_at_the_end_of_a_dataset_are_detected() -> None:
    task = a_rare_task(loss=constant, train_data=Together())
    subject = Subject.of(task, CPU)
    worst = WorstCase.of(task, "train", limit_s=30.0, seed=0)
    worst.order = tuple(range(20_000))
    first_steps(subject, worst, SIZE)
    assert worst.order[0] >= 19_000


def without_holes(samples: list[object]) -> object:
    return default_collate([sample for sample in samples if sample is not None])


class Nothing(Dataset[object]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> object:
        return None


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (replace(a_task(), loss=lambda model, batch: cross_entropy(model, batch).detach()), "no gradient flows back"),
        (replace(a_task(), loss=lambda model, batch: torch.tensor(0.0)), "no gradient flows back"),
        (replace(a_task(), weight_of=lambda batch: 0), "weight_of returned 0 for each of"),
        (replace(a_task(), train_data=Nothing(), collate_fn=without_holes), "the collate function left no sample"),
    ],
)
def test_a_task_without_a_training_signal_is_a_user_code_error(task: Task, what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        looked(task)
    assert caught.value.exit_code == 5
    assert caught.value.try_


def test_a_one_size_process_runs_only_one_size() -> None:
    sizes: set[int] = set()

    def watched(model: nn.Module, batch: object) -> Tensor:
        sizes.add(len(unpacked(batch)[0]))
        return constant(model, batch)

    task = a_rare_task(loss=watched)
    subject = Subject.of(task, CPU)
    worst = WorstCase.of(task, "train", limit_s=5.0, seed=0)
    worst.order = tuple(sorted(worst.order, key=lambda index: (index % 16 == 9) * index))
    first_steps(subject, worst, SIZE, one_size=True)
    assert sizes == {SIZE}


def test_a_hook_that_removes_gradients_is_named_in_the_error() -> None:
    """Before, the loss was said to be detached."""
    task = a_task()

    def clear(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in task.model.parameters():
        parameter.register_post_accumulate_grad_hook(clear)
    with pytest.raises(UserCodeError, match="a hook removes the gradients") as caught:
        looked(task)
    assert "register_post_accumulate_grad_hook" in caught.value.known


@pytest.mark.parametrize(("steps", "returns_graph"), [(False, False), (False, True), (True, False)])
def test_a_loss_that_calls_backward_or_step_is_rejected(steps: bool, returns_graph: bool) -> None:
    """As the training step of another trainer: its gradients would have no weight, or the optimizer would step twice."""
    task = a_task()

    def training_step(model: nn.Module, batch: object) -> Tensor:
        loss = cross_entropy(model, batch)
        task.optimizer.zero_grad()
        loss.backward()
        if steps:
            task.optimizer.step()
        return loss if returns_graph else loss.detach()

    with pytest.raises(UserCodeError, match="steps the optimizer" if steps else r"calls backward\(\)") as caught:
        looked(replace(task, loss=training_step))
    assert "only compute the loss" in caught.value.try_


def test_a_loss_that_trains_another_model_is_accepted() -> None:
    """A discriminator that is trained within the loss of its generator."""
    other = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)

    def adversarial(model: nn.Module, batch: object) -> Tensor:
        optimizer.zero_grad()
        other(unpacked(batch)[0]).square().mean().backward()
        optimizer.step()
        return cross_entropy(model, batch)

    steps, _ = looked(replace(a_task(), loss=adversarial))
    assert steps.lessons["gradient"] == 1


def test_disabled_gradients_are_named_in_the_error() -> None:
    with torch.no_grad(), pytest.raises(UserCodeError, match="gradients are switched off in this process") as raised:
        looked(a_task())
    assert "set_grad_enabled" in raised.value.known
