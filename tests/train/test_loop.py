from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import batchcal
from batchcal.core.errors import UsageError
from batchcal.core.progress import Field, Recorded
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy, points
from tests.support.trainings import InOrder, parameters


def test_training_reduces_the_loss_and_returns_a_complete_result() -> None:
    task, heard = a_task(100), Recorded()
    result = train(task, a_plan(8, 8, eval_batch=7), TrainOptions(epochs=5), progress=heard)
    assert [epoch.epoch for epoch in result.epochs] == [0, 1, 2, 3, 4]
    assert result.epochs[-1].loss < result.epochs[0].loss * 0.7
    assert all(epoch.samples == 100 and epoch.steps == 7 for epoch in result.epochs), "six groups of 16 and one of 4"
    first, last = (result.epochs[place].evaluation["accuracy"] for place in (0, -1))
    assert first is not None
    assert last is not None
    assert first < last <= 1
    assert result.samples_per_s > 0
    assert result.peak_bytes > 10_000_000
    assert result.accelerator_peak_bytes is None
    assert result.resumed_at_epoch is None
    names = [name for name, _ in heard.events]
    assert names.count("step") == 35
    assert names.count("epoch_ended") == 5
    assert (names[0], names[-1]) == ("training_started", "training_ended")


def test_the_same_seed_repeats_a_training_exactly_and_another_does_not() -> None:
    def trained(seed: int) -> Tensor:
        task = a_task(50, dropout=0.3)
        train(task, a_plan(8), TrainOptions(epochs=2, seed=seed))
        return parameters(task)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_evaluation_of_uneven_batches_is_exact_without_gradients() -> None:
    modes = []

    def watched(model: nn.Module, batch: object) -> Tensor:
        modes.append((model.training, torch.is_grad_enabled()))
        return cross_entropy(model, batch)

    task = replace(a_task(20, eval_samples=31), loss=watched, train_data=points(20))
    result = train(task, a_plan(20, eval_batch=8), TrainOptions(epochs=1))
    assert modes == [(True, True)] + [(False, False)] * 4
    task.model.eval()
    with torch.no_grad():
        whole = float(cross_entropy(task.model, _all(points(31, seed=1), 31)))
    assert result.epochs[0].evaluation["loss"] == pytest.approx(whole, rel=1e-5)


def _all(data: Dataset[object], count: int) -> object:
    batch: object = torch.utils.data.default_collate([data[index] for index in range(count)])
    return batch


def test_a_task_without_evaluation_data_is_not_evaluated() -> None:
    assert train(replace(a_task(20), eval_data=None), a_plan(10), TrainOptions(epochs=1)).epochs[0].evaluation == {}


def test_a_custom_evaluation_step_is_run_and_metrics_are_reported() -> None:
    seen: list[object] = []

    def step(model: nn.Module, batch: object) -> object:
        seen.append(batch)
        return "something"

    task = replace(a_task(20, eval_samples=30), eval_step=step)
    result = train(task, a_plan(10, eval_batch=16), TrainOptions(epochs=1))
    assert len(seen) == 2
    assert set(result.epochs[0].evaluation) == {"accuracy"}


def test_training_reads_a_stream_to_its_end() -> None:
    task = replace(a_task(), train_data=InOrder(45), eval_data=InOrder(10))
    result = train(task, a_plan(8, 8), TrainOptions(epochs=2))
    assert [epoch.samples for epoch in result.epochs] == [45, 45]
    assert result.epochs[0].steps == 3


def test_drop_last_omits_the_last_smaller_group() -> None:
    assert train(a_task(45), a_plan(8, 8), TrainOptions(epochs=1, drop_last=True)).epochs[0].samples == 32


def test_zero_epochs_and_resume_without_a_checkpoint_are_rejected() -> None:
    with pytest.raises(UsageError, match="epochs 0 is below 1"):
        train(a_task(20), a_plan(10), TrainOptions(epochs=0))
    with pytest.raises(UsageError, match="no checkpoint to resume"):
        train(a_task(20), a_plan(10), resume=True)


def test_every_step_reports_its_loss() -> None:
    heard = Recorded()
    train(a_task(20), a_plan(5, 5), progress=heard)
    steps: list[dict[str, Field]] = [fields for name, fields in heard.events if name == "step"]
    assert [fields["step"] for fields in steps] == [1, 2]
    assert all(fields["samples"] == 10 and fields["micro_batches"] == 2 for fields in steps)
    assert all(isinstance(fields["loss"], float) for fields in steps)


@pytest.mark.child
def test_training_with_workers_gives_the_same_parameters() -> None:
    plain, worked = a_task(60), a_task(60)
    train(plain, a_plan(8, 7), TrainOptions(epochs=2))
    train(worked, a_plan(8, 7, num_workers=1, prefetch_factor=2, persistent_workers=True), TrainOptions(epochs=2))
    assert torch.equal(parameters(plain), parameters(worked))


def test_an_evaluation_error_leaves_a_checkpoint_of_the_trained_epoch(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: object) -> object:
        raise ValueError("no such column")

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="no such column"):
        train(replace(a_task(40), eval_step=broken), a_plan(10), checkpoint=checkpoint)
    heard = Recorded()
    result = train(a_task(40), a_plan(10), checkpoint=checkpoint, resume=True, progress=heard)
    assert not [name for name, _ in heard.events if name == "step"], "all steps were done"
    assert result.epochs[0].samples == 40
    assert "loss" in result.epochs[0].evaluation


def test_an_evaluation_error_after_max_steps_leaves_a_checkpoint(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: object) -> object:
        raise ValueError("no such column")

    checkpoint, options = tmp_path / "run.pt", TrainOptions(max_steps=2)
    with pytest.raises(ValueError, match="no such column") as caught:
        train(replace(a_task(40), eval_step=broken), a_plan(10), options, checkpoint=checkpoint)
    assert f"the checkpoint is {checkpoint}" in " ".join(caught.value.__notes__)
    result = train(a_task(40), a_plan(10), checkpoint=checkpoint, resume=True)
    assert [epoch.steps for epoch in result.epochs] == [4]


def test_early_stopping_ends_after_epochs_without_improvement() -> None:
    losses = iter([0.9, 0.5, 0.6, 0.49, 0.55, 0.1])

    def told(model: nn.Module, batch: object) -> dict[str, tuple[float, float]]:
        return {"error": (next(losses), 1.0)}

    task = replace(a_task(20, eval_samples=10), metrics=told)
    options = TrainOptions(epochs=6, patience=2, watch="error", min_delta=0.05)
    result = train(task, a_plan(10, eval_batch=10), options)
    assert len(result.epochs) == 4, "0.49 is better than 0.5, but not by more than 0.05"
    assert result.stopped_early
    assert result.stop_reason == "error has not improved for 2 epochs"


def test_early_stopping_without_evaluation_data_is_off_with_a_notice() -> None:
    heard = Recorded()
    result = train(replace(a_task(20), eval_data=None), a_plan(10), TrainOptions(epochs=3, patience=1), progress=heard)
    assert len(result.epochs) == 3
    assert ("notice", {"text": "there is no evaluation data: early stopping is off"}) in heard.events


def test_early_stopping_rejects_a_metric_that_is_not_evaluated() -> None:
    with pytest.raises(UsageError, match=r"watches 'f1'.*\n.*accuracy, loss"):
        train(a_task(20), a_plan(10), TrainOptions(epochs=2, patience=1, watch="f1"))


def test_the_learning_rate_warms_up_and_decays_by_samples() -> None:
    heard = Recorded()
    task = a_task(100)
    task = replace(task, optimizer=torch.optim.SGD(task.model.parameters(), lr=1.0))
    train(task, a_plan(10), TrainOptions(epochs=2, schedule="linear", warmup=0.2), progress=heard)
    rates = [fields["lr"] for name, fields in heard.events if name == "step"]
    assert rates[:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert rates[4] == pytest.approx(1 - 0.5 / 16)
    assert rates[-1] == pytest.approx(0.5 / 16)


def test_the_learning_rate_is_scaled_from_its_reference_batch_by_the_rule() -> None:
    def rates(options: TrainOptions) -> list[Field]:
        heard = Recorded()
        task = a_task(50)
        task = replace(task, optimizer=torch.optim.SGD(task.model.parameters(), lr=0.1))
        train(task, a_plan(20), options, progress=heard)
        return [fields["lr"] for name, fields in heard.events if name == "step"]

    assert rates(TrainOptions(lr_reference_batch=5)) == [0.1] * 3, "nothing moves unless it is told to"
    assert rates(TrainOptions(lr_rule="linear", lr_reference_batch=5)) == pytest.approx([0.4, 0.4, 0.2]), "the last step has 10"
    assert rates(TrainOptions(lr_rule="sqrt")) == pytest.approx([0.1, 0.1, 0.1 * 0.5**0.5])


def test_gradients_are_clipped_and_the_original_norm_is_reported() -> None:
    heard = Recorded()
    task = a_task(40)
    task = replace(task, optimizer=torch.optim.SGD(task.model.parameters(), lr=1.0))
    before = parameters(task)
    train(task, a_plan(40), TrainOptions(max_norm=0.01), progress=heard)
    (step,) = [fields for name, fields in heard.events if name == "step"]
    assert isinstance(step["grad_norm"], float)
    assert step["grad_norm"] > 0.1
    assert float((parameters(task) - before).norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainOptions(epochs=0),
        lambda: TrainOptions(patience=0),
        lambda: TrainOptions(min_delta=-1.0),
        lambda: TrainOptions(warmup=1.0),
        lambda: TrainOptions(max_norm=0.0),
        lambda: TrainOptions(start_micro_batch=0),
        lambda: TrainOptions(checkpoint_every_s=0),
    ],
    ids=["epochs", "patience", "min_delta", "warmup", "max_norm", "start_micro_batch", "checkpoint_every"],
)
def test_invalid_training_options_are_rejected(make: Callable[[], TrainOptions]) -> None:
    with pytest.raises(UsageError):
        make()


def test_batchcal_train_can_be_called_as_a_function() -> None:
    result = batchcal.train(a_task(20), a_plan(10), TrainOptions(epochs=2))
    assert [epoch.samples for epoch in result.epochs] == [20, 20]


def test_a_nan_metric_does_not_end_the_training() -> None:
    def metrics(model: nn.Module, batch: object) -> dict[str, tuple[float, float]]:
        return {"f1": (math.nan, 1.0), "of_nothing": (0.0, 0.0), "fine": (1.0, 2.0)}

    heard = Recorded()
    result = train(
        replace(a_task(20), metrics=metrics), a_plan(10), TrainOptions(epochs=2, watch="f1", patience=1), progress=heard
    )
    told = result.epochs[0].evaluation
    assert (told["f1"], told["of_nothing"], told["fine"]) == (None, None, 0.5)
    assert result.model_validate_json(result.model_dump_json()) == result
    (first, *_) = [fields for name, fields in heard.events if name == "epoch_ended"]
    assert first["eval_f1"] is None


UNDIVIDED = {"undivided": "the gradient would differ by 76 %: in-batch negatives"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (TrainOptions(start_micro_batch=4), "start_micro_batch"),
        (TrainOptions(batching="bucketed"), "batching"),
    ],
)
def test_options_that_divide_an_undivided_batch_are_rejected(options: TrainOptions, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} divides") as refused:
        train(a_task(100), a_plan(16, **UNDIVIDED), options)
    assert "in-batch negatives" in refused.value.known


def test_a_last_group_that_failed_in_the_rehearsal_requires_drop_last() -> None:
    plan = a_plan(16, last_group=(4,), last_group_error="ValueError: one sample more is needed")
    with pytest.raises(UsageError, match="the last group of an epoch has 4 samples") as refused:
        train(a_task(100), plan)
    assert "--drop-last" in refused.value.try_
    assert train(a_task(100), plan, TrainOptions(drop_last=True)).epochs[0].samples == 96


@pytest.mark.parametrize("name", ["start_micro_batch", "batching"])
def test_options_that_divide_batches_of_a_batchnorm_model_are_rejected(name: str) -> None:
    smaller = TrainOptions(start_micro_batch=4) if name == "start_micro_batch" else TrainOptions(batching="bucketed")
    task = a_task(100)
    normalised = replace(task, model=nn.Sequential(nn.BatchNorm1d(8), task.model))
    with pytest.raises(UsageError, match=f"{name} divides") as refused:
        train(normalised, a_plan(16), smaller)
    assert "BatchNorm" in refused.value.known
    assert "--on-oom split" in refused.value.try_
