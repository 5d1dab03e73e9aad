"""What a probe steps: it must hold what a user's loop holds between two steps, or it measures too little."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from batchcal.measure.inside.subject import Subject
from batchcal.workload.task import Task


@pytest.fixture
def subject() -> Subject:
    model = nn.Linear(4, 1)
    task = Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        train_data=TensorDataset(torch.zeros(8, 4)),
        loss=lambda model, batch: model(batch).square().mean(),
    )
    return Subject.of(task, torch.device("cpu"))


def test_the_loss_of_a_step_is_kept_until_the_next_loss_is_computed(subject: Subject) -> None:
    subject.train(torch.ones(2, 4), 2)
    held = _losses(subject)
    assert len(held) == 1
    subject.train(torch.ones(2, 4), 2)
    assert held[0]() is None
    assert len(_losses(subject)) == 1


def test_gradients_of_a_step_are_kept_until_the_next_batch(subject: Subject) -> None:
    subject.train(torch.ones(2, 4), 2)
    assert all(parameter.grad is not None for parameter in subject.task.model.parameters())


def test_the_first_step_after_warm_up_creates_the_optimizer_state(subject: Subject) -> None:
    subject.warm_up(torch.ones(2, 4), 2)
    assert not subject.task.optimizer.state
    subject.train(torch.ones(2, 4), 2)
    assert len(subject.task.optimizer.state) == len(list(subject.task.model.parameters()))


def _losses(subject: Subject) -> list[weakref.ref[Tensor]]:
    """Losses that somebody holds: what has a graph and is no parameter."""
    return [
        weakref.ref(one)
        for one in gc.get_objects()
        if type(one) is Tensor and not isinstance(one, nn.Parameter) and one.grad_fn is not None
    ]
