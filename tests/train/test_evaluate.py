from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from batchcal.core.errors import NothingFits, UserCodeError
from batchcal.runtime.loader import make_eval_loader
from batchcal.train.evaluate import evaluate_all
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.tasks import a_task, points, unpacked

CPU = torch.device("cpu")


def evaluated(task: Task, *, eval_batch: int = 8) -> dict[str, float]:
    assert task.eval_data is not None
    return evaluate_all(task, make_eval_loader(a_plan(4, eval_batch=eval_batch), task.eval_data), device=CPU)


@pytest.mark.parametrize("eval_batch", [1, 7, 30, 100])
def test_the_batch_size_does_not_change_the_evaluation_result(eval_batch: int) -> None:
    task = a_task(eval_samples=30)
    assert evaluated(task, eval_batch=eval_batch) == pytest.approx(evaluated(task, eval_batch=30), rel=1e-5)


def test_a_metric_uses_its_own_weight() -> None:
    """Recall of class 1: its weight is how many of class 1 there are, not how many samples."""

    def recall(model: nn.Module, batch: object) -> dict[str, tuple[float, float]]:
        inputs, labels = unpacked(batch)
        of_class = labels == 1
        return {"recall": (float((model(inputs).argmax(dim=1)[of_class] == 1).sum()), float(of_class.sum()))}

    task = replace(a_task(eval_samples=50), metrics=recall)
    assert evaluated(task, eval_batch=6)["recall"] == pytest.approx(evaluated(task, eval_batch=50)["recall"])


def test_a_metric_with_zero_weight_is_nan() -> None:
    assert math.isnan(evaluated(replace(a_task(), metrics=lambda model, batch: {"rare": (0.0, 0.0)}))["rare"])


def test_the_mode_of_the_model_is_restored_after_evaluation_and_after_a_failure() -> None:
    task = a_task()
    task.model.eval()
    evaluated(task)
    assert not task.model.training
    task.model.train()

    def fails(model: nn.Module, batch: object) -> dict[str, tuple[float, float]]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluated(replace(task, metrics=fails))
    assert task.model.training


def a_mean(model: nn.Module, batch: object) -> dict[str, float]:
    return {"accuracy": 0.5}


def a_number(model: nn.Module, batch: object) -> float:
    return 0.5


def test_metrics_that_cannot_be_summed_over_batches_are_rejected() -> None:
    for wrong in (a_mean, a_number):
        task = a_task()
        object.__setattr__(task, "metrics", wrong)  # past the type checker, as a user without one
        with pytest.raises(UserCodeError, match="metrics returned") as caught:
            evaluated(task)
        assert "number_correct" in caught.value.try_


def test_task_weights_apply_in_evaluation() -> None:
    def mean_over_class_one(model: nn.Module, batch: object) -> Tensor:
        inputs, labels = unpacked(batch)
        each = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
        return (each * (labels + 1)).sum() / (labels + 1).sum()

    task = replace(
        a_task(), loss=mean_over_class_one, weight_of=lambda batch: (batch[1] + 1).sum(), metrics=None, eval_data=points(41)
    )
    assert evaluated(task, eval_batch=6) == pytest.approx(evaluated(task, eval_batch=41), rel=1e-5)


def test_an_evaluation_batch_that_does_not_fit_is_split_with_the_same_result() -> None:
    plain = a_task(eval_samples=30)
    told: list[int] = []

    def scarce(model: nn.Module, batch: object) -> Tensor:
        if len(unpacked(batch)[0]) > 5:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return plain.loss(model, batch)

    assert plain.eval_data is not None
    loader = make_eval_loader(a_plan(4, eval_batch=16), plain.eval_data)
    found = evaluate_all(replace(plain, loss=scarce), loader, device=CPU, report=lambda samples, _: told.append(samples))
    assert found == pytest.approx(evaluated(plain, eval_batch=16), rel=1e-5)
    assert told == [16, 8, 8, 14, 7, 7]


def test_the_evaluation_fails_if_a_single_sample_does_not_fit() -> None:
    def never(model: nn.Module, batch: object) -> Tensor:
        raise MemoryError

    with pytest.raises(NothingFits, match="evaluation of 1 sample"):
        evaluated(replace(a_task(), loss=never))
