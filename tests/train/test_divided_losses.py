"""For each loss that people use: a plan, a training and a recovery from out-of-memory give the gradient of the undivided batch,
or refuse to divide it, or mark the plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.schema import Calibration
from batchcal.core.errors import NothingFits
from batchcal.measure.inside.mean_over_weight import check_mean
from batchcal.measure.inside.promises import batch_statistics
from batchcal.measure.inside.samples import Samples
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.model.parameters import trained_parameters
from batchcal.workload.task import Task
from tests.support.calibrations import a_calibration, a_finding, options
from tests.support.losses import LOSSES, SAMPLES, Verdict
from tests.support.plans import a_plan

CPU = torch.device("cpu")
CAPACITY = 20
EFFECTIVE = 48


def made(name: str) -> Task:
    """The task in double precision and without dropout, so that order of summation is all that differs."""
    task = LOSSES[name].make()
    for parameter in trained_parameters(task):
        parameter.data = parameter.data.double()
    task.model.double()
    for module in task.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    collate = task.collate_fn or torch.utils.data.default_collate
    return replace(task, collate_fn=lambda samples: doubled(collate(samples)))


def doubled(batch: object) -> object:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {name: doubled(value) for name, value in batch.items()}
    return [doubled(value) for value in batch] if isinstance(batch, list) else batch


def checked(task: Task) -> tuple[PromiseCheck, ...]:
    task = copy.deepcopy(task)
    return check_mean(task, Samples(task, seed=0), CPU, unit=1, limit_s=60.0), batch_statistics(task.model)


def calibrated(name: str, **asked: object) -> Calibration:
    """What a calibration holds whose capacity is 20 samples."""
    finding = a_finding()
    small = finding.train.model_copy(update={"batch": CAPACITY})
    calibration = a_calibration(
        promises=checked(made(name)),
        findings=(finding.model_copy(update={"train": small, "eval": None, "eval_memory": None}),),
        measurements=(),
        options=options(**asked),
    )
    assert calibration.facts is not None
    return calibration.model_copy(update={"facts": calibration.facts.model_copy(update={"train_samples": SAMPLES})})


def learned(task: Task, plan: Plan) -> Tensor:
    """All that the optimizer changed in two epochs."""
    train(task, plan, TrainOptions(epochs=2, seed=3, max_norm=1e9))
    return torch.cat([one.detach().flatten().double() for one in trained_parameters(task)])


def undivided(name: str) -> Tensor:
    return learned(made(name), a_plan(EFFECTIVE))


def of_verdict(*verdicts: Verdict) -> list[str]:
    return [name for name, loss in LOSSES.items() if loss.verdict in verdicts]


@pytest.mark.parametrize("name", of_verdict("exact"))
def test_a_divided_exact_loss_trains_as_the_undivided_batch(name: str) -> None:
    plan = make_plan(calibrated(name), effective_batch=EFFECTIVE)
    assert plan.micro_batches == (16, 16, 16)
    assert (plan.inexact, plan.undivided) == ((), "")
    torch.testing.assert_close(learned(made(name), plan), undivided(name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", of_verdict("refused"))
def test_a_loss_that_couples_its_samples_is_not_divided_unless_the_user_accepts_it(name: str) -> None:
    calibration = calibrated(name)
    with pytest.raises(DivisionRefused):
        make_plan(calibration, effective_batch=EFFECTIVE)
    fitting = make_plan(calibration, effective_batch=CAPACITY)
    assert fitting.micro_batches == (CAPACITY,)
    torch.testing.assert_close(learned(made(name), fitting), learned(made(name), a_plan(CAPACITY)), rtol=1e-9, atol=1e-11)
    accepted = make_plan(calibration, effective_batch=EFFECTIVE, accept_inexact=True)
    assert accepted.inexact == ("loss",)


@pytest.mark.parametrize("name", of_verdict("marked"))
def test_batch_statistics_mark_the_plan_as_inexact(name: str) -> None:
    plan = make_plan(calibrated(name), effective_batch=EFFECTIVE)
    assert plan.micro_batches == (16, 16, 16)
    assert plan.inexact == ("batch-statistics",)


def starving(task: Task, most: int) -> Task:
    """Memory runs out in the forward pass over more than `most` samples."""
    loss: Callable[..., Tensor] = task.loss

    def limited(model: nn.Module, batch: object) -> Tensor:
        values = list(batch.values()) if isinstance(batch, dict) else batch
        assert isinstance(values, list)
        if len(values[0]) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to")
        return loss(model, batch)

    return replace(task, loss=limited)


@pytest.mark.parametrize("name", of_verdict("exact"))
def test_recovery_does_not_change_the_training_of_an_exact_loss(name: str) -> None:
    plan = make_plan(calibrated(name), effective_batch=EFFECTIVE)
    torch.testing.assert_close(learned(starving(made(name), 9), plan), undivided(name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", of_verdict("refused"))
def test_recovery_never_divides_a_loss_that_must_not_be_divided(name: str) -> None:
    plan = make_plan(calibrated(name), effective_batch=CAPACITY)
    with pytest.raises(NothingFits) as raised:
        learned(starving(made(name), 9), plan)
    assert "must not be divided" in raised.value.known
