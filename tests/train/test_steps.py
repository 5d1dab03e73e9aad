"""Optimizer steps of a training: how many there are, which are skipped, and what a group without labels or rows does to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, default_collate

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.progress import Recorded
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.model.loss_error import LossIsNoNumber
from batchcal.workload.task import Task
from tests.support.optimizers import Both, Sharpness, WithoutRate
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy, unpacked
from tests.support.trainings import parameters


class Endless(IterableDataset[object]):
    """Samples of `a_task`, the same again and again."""

    def __iter__(self) -> Iterator[object]:
        data = a_task(20).train_data
        while True:
            for index in range(20):
                yield data[index]


class Counted(Endless):
    def __len__(self) -> int:
        return 30


def test_an_epoch_of_a_stream_with_a_length_has_that_many_samples() -> None:
    task = replace(a_task(), train_data=Counted(), eval_data=None)
    heard = Recorded()
    result = train(task, a_plan(8), TrainOptions(epochs=2, schedule="cosine"), progress=heard)
    assert [(epoch.samples, epoch.steps) for epoch in result.epochs] == [(30, 4), (30, 4)]
    started = dict(heard.events)["training_started"]
    assert (started["train_samples"], started["steps_per_epoch"]) == (30, 4)


def test_an_endless_stream_requires_max_steps() -> None:
    task = replace(a_task(), train_data=Endless(), eval_data=None)
    with pytest.raises(UsageError, match="without an end and without a length") as caught:
        train(task, a_plan(8), TrainOptions(epochs=2))
    assert caught.value.exit_code == 2
    assert "--max-steps" in caught.value.try_
    result = train(task, a_plan(8), TrainOptions(epochs=5, max_steps=5))
    assert sum(epoch.steps for epoch in result.epochs) == 5
    assert result.epochs[0].samples == 40


@pytest.mark.parametrize("max_steps", [1, 3, 4, 6, 8])
def test_a_run_ends_after_max_steps_and_resumes_if_more_are_requested(tmp_path: Path, max_steps: int) -> None:
    """Four steps an epoch: the limit is within an epoch, at its end, and beyond all epochs."""
    plain, resumed = a_task(32), a_task(32)
    train(plain, a_plan(8), TrainOptions(epochs=2))
    checkpoint = tmp_path / "checkpoint.pt"
    options = TrainOptions(epochs=2, max_steps=max_steps)
    first = train(resumed, a_plan(8), options, checkpoint=checkpoint)
    assert sum(epoch.steps for epoch in first.epochs) == max_steps
    assert all("accuracy" in epoch.evaluation for epoch in first.epochs), "the last, shorter epoch is evaluated too"
    again = train(a_task(32), a_plan(8), options, checkpoint=checkpoint, resume=True)
    assert sum(epoch.steps for epoch in again.epochs) == max_steps, "nothing is left to do"
    resumed = a_task(32)
    last = train(resumed, a_plan(8), TrainOptions(epochs=2), checkpoint=checkpoint, resume=True)
    assert sum(epoch.steps for epoch in last.epochs) == 8
    assert torch.equal(parameters(resumed), parameters(plain))


def test_max_steps_below_one_is_rejected() -> None:
    with pytest.raises(UsageError, match="max-steps 0 is below 1"):
        TrainOptions(max_steps=0)


class Rarely(Dataset[object]):
    """One sample in 16 is labelled."""

    def __len__(self) -> int:
        return 64

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


def labelled(batch: object) -> float:
    return float((unpacked(batch)[1] >= 0).sum())


def rarely_labelled(**changes: object) -> Task:
    task = replace(a_task(), train_data=Rarely(), eval_data=None, metrics=None)
    for name, value in changes.items():
        object.__setattr__(task, name, value)
    return task


@pytest.mark.parametrize("task", [rarely_labelled(loss=constant), rarely_labelled(loss=mean, weight_of=labelled)])
def test_groups_without_labels_are_skipped_and_counted(task: Task) -> None:
    heard = Recorded()
    result = train(task, a_plan(4, 4), TrainOptions(epochs=2), progress=heard)
    labelled_groups = sum(fields["skipped"] is None for name, fields in heard.events if name == "step")
    assert 2 <= labelled_groups <= 8
    assert result.skipped_steps == 16 - labelled_groups
    assert sum(epoch.skipped_steps for epoch in result.epochs) == result.skipped_steps
    notices = [str(fields["text"]) for name, fields in heard.events if name == "notice"]
    assert any("skipped a step" in text for text in notices)


def test_a_nan_loss_of_an_empty_mean_names_the_operation_and_weight_of() -> None:
    with pytest.raises(LossIsNoNumber, match="is nan") as caught:
        train(rarely_labelled(loss=mean), a_plan(4, 4), TrainOptions(epochs=1))
    assert "a mean over no elements: nll_loss" in caught.value.known
    assert "weight_of" in caught.value.try_


def test_an_empty_mean_is_not_treated_as_a_float16_overflow() -> None:
    """The scaler would lower its scale at each such group, down to nothing."""
    with pytest.raises(LossIsNoNumber, match="is nan"):
        train(rarely_labelled(loss=mean, autocast=torch.float16), a_plan(4, 4), TrainOptions(epochs=1))


def test_an_optimizer_with_a_closure_trains_with_one_micro_batch() -> None:
    def closed() -> Task:
        task = a_task(40)
        return replace(task, optimizer=torch.optim.LBFGS(task.model.parameters(), max_iter=4))

    result = train(closed(), a_plan(20), TrainOptions(epochs=3, max_norm=10.0))
    assert result.epochs[-1].loss < result.epochs[0].loss
    with pytest.raises(UsageError, match="LBFGS computes the loss again"):
        train(closed(), a_plan(10, 10), TrainOptions(epochs=1))


def of_sharpness() -> Task:
    task = a_task(40)
    return replace(task, optimizer=Sharpness(task.model.parameters()))


def test_an_optimizer_that_requires_a_closure_trains_as_in_a_plain_loop() -> None:
    trained, plain = of_sharpness(), of_sharpness()
    train(trained, a_plan(40), TrainOptions(epochs=3))
    batch = default_collate([plain.train_data[index] for index in range(40)])
    for _ in range(3):
        plain.optimizer.zero_grad()

        def closure() -> float:
            loss = plain.loss(plain.model, batch)
            loss.backward()
            return loss.item()

        closure()
        plain.optimizer.step(closure)
    for one, other in zip(trained.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match="Sharpness computes the loss again"):
        train(of_sharpness(), a_plan(20, 20), TrainOptions(epochs=1))


def of_both() -> Task:
    task = a_task(40)
    first, *others = task.model.parameters()
    return replace(task, optimizer=Both(torch.optim.Adam([first], 0.01), torch.optim.SGD(others, 0.02, momentum=0.9)))


def test_combined_optimizers_resume_with_their_state(tmp_path: Path) -> None:
    """Their state is not in `state_dict` of the outer one."""
    at_once, resumed = of_both(), of_both()
    train(at_once, a_plan(20), TrainOptions(epochs=2))
    train(of_both(), a_plan(20), TrainOptions(epochs=1), checkpoint=tmp_path / "run.pt")
    train(resumed, a_plan(20), TrainOptions(epochs=2), checkpoint=tmp_path / "run.pt", resume=True)
    for one, other in zip(at_once.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_schedule_applies_to_the_inner_optimizers() -> None:
    constant, warm = of_both(), of_both()
    train(constant, a_plan(20), TrainOptions(epochs=1))
    train(warm, a_plan(20), TrainOptions(epochs=1, warmup=0.9))
    moved = [
        sum(
            float((now - start).abs().sum())
            for now, start in zip(each.model.parameters(), of_both().model.parameters(), strict=True)
        )
        for each in (constant, warm)
    ]
    assert 0 < moved[1] < moved[0]


def test_a_schedule_for_an_optimizer_without_a_learning_rate_is_rejected() -> None:
    task = a_task(40)
    with pytest.raises(UsageError, match="the optimizer has no learning rate"):
        train(replace(task, optimizer=WithoutRate(task.model.parameters())), a_plan(20), TrainOptions(epochs=1, warmup=0.5))


class Switching(torch.optim.SGD):
    """As schedule-free optimizers: it has a mode."""

    mode = "eval"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_an_optimizer_with_modes_switches_between_training_and_evaluation() -> None:
    task = a_task(32)
    optimizer = Switching(task.model.parameters(), lr=0.1)
    modes: list[tuple[bool, str]] = []

    def watched(model: nn.Module, batch: object) -> Tensor:
        modes.append((model.training, optimizer.mode))
        return cross_entropy(model, batch)

    train(replace(task, optimizer=optimizer, loss=watched), a_plan(16), TrainOptions(epochs=2))
    assert set(modes) == {(True, "train"), (False, "eval")}


def test_sparse_gradients_are_clipped_in_a_training() -> None:
    class Ids(Dataset[object]):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> object:
            return torch.tensor([index % 5, index % 7]), index % 3

    trained = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(10, 8, sparse=sparse), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        task = replace(a_task(), model=model, optimizer=optimizer, train_data=Ids(), eval_data=None, metrics=None)
        train(task, a_plan(8, 8), TrainOptions(epochs=2, max_norm=0.1))
        trained.append(parameters(task))
    torch.testing.assert_close(*trained)


def test_a_training_in_which_no_group_has_a_gradient_fails() -> None:
    def detached(model: nn.Module, batch: object) -> Tensor:
        return cross_entropy(model, batch).detach()

    with pytest.raises(UserCodeError, match=r"nothing was trained: the optimizer skipped every step \(4 steps\)") as caught:
        train(replace(a_task(32), loss=detached), a_plan(8), TrainOptions(epochs=3))
    assert "model(...)" in caught.value.try_
    with pytest.raises(UserCodeError, match="nothing was trained"):
        train(replace(a_task(32), weight_of=lambda batch: 0), a_plan(8), TrainOptions(epochs=3))


class Holes(Dataset[object]):
    """Samples of `a_task`; a share of them could not be read."""

    def __init__(self, share: float) -> None:
        self.share, self.data = share, a_task(64).train_data

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> object:
        drawn = float(torch.rand((), generator=torch.Generator().manual_seed(index)))
        return None if drawn < self.share else self.data[index]


def without_holes(samples: list[object]) -> object:
    return default_collate([sample for sample in samples if sample is not None])


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_collated_rows_determine_the_weight_of_a_micro_batch(share: float) -> None:
    """A group in parts makes the step of the undivided batch, though parts have lost more or fewer rows, or all."""
    parts, undivided = (replace(a_task(), train_data=Holes(share), collate_fn=without_holes, eval_data=None) for _ in range(2))
    for task in (parts, undivided):
        task.optimizer.param_groups[0]["eps"] = 1e-2
    of_parts = train(parts, a_plan(4, 4, 4, 4), TrainOptions(epochs=2))
    of_undivided = train(undivided, a_plan(16), TrainOptions(epochs=2))
    torch.testing.assert_close(parameters(parts), parameters(undivided), rtol=1e-4, atol=1e-5)
    assert of_parts.epochs[1].loss == pytest.approx(of_undivided.epochs[1].loss, rel=1e-5)
    assert of_parts.epochs[0].samples == 64


def test_a_training_in_which_all_samples_are_none_fails() -> None:
    task = replace(a_task(), train_data=Holes(1.1), collate_fn=without_holes, eval_data=None)
    with pytest.raises(UserCodeError, match="nothing was trained"):
        train(task, a_plan(16), TrainOptions(epochs=2))


def test_an_evaluation_counts_the_rows_that_were_collated() -> None:
    losses = []
    for size in (4, 64):
        task = replace(a_task(), eval_data=Holes(0.9), collate_fn=without_holes, metrics=None)
        losses.append(train(task, a_plan(50, eval_batch=size), TrainOptions()).epochs[0].evaluation["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
