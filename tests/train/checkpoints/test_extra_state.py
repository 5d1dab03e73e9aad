"""A training that keeps state outside of its model and optimizer ends where an unstopped one ends, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import overload

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import UsageError
from batchcal.core.progress import Recorded
from batchcal.train.checkpoints.checkpoint import save_checkpoint, why_not_resumable
from batchcal.train.checkpoints.extra_state import LARGE_BYTES, ExtraState
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy, unpacked
from tests.support.trainings import parameters
from tests.train.checkpoints.test_checkpoint import standing

PLAN = a_plan(16)


def averaged() -> Task:
    """Learns from a moving average of its own weights, which a hook of the optimizer moves on."""
    task = a_task(100)
    average = torch.optim.swa_utils.AveragedModel(task.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))

    def follow(*_: object) -> None:
        average.update_parameters(task.model)

    def loss(model: nn.Module, batch: object) -> Tensor:
        with torch.no_grad():
            wanted = average(unpacked(batch)[0])
        return cross_entropy(model, batch) + functional.mse_loss(model(unpacked(batch)[0]), wanted * 1.1)

    task.optimizer.register_step_post_hook(follow)
    return replace(task, loss=loss)


def scheduled() -> Task:
    task = a_task(100)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(task.optimizer, 12)

    def step(*_: object) -> None:
        schedule.step()

    task.optimizer.register_step_post_hook(step)
    return task


class Decaying(torch.optim.Optimizer):
    """A step number that is an attribute."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})
        self.done = 0

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        self.done += 1
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad, alpha=0.5 / self.done)
        return None


def counting() -> Task:
    task = a_task(100)
    return replace(task, optimizer=Decaying(task.model))


class Adversarial:
    """A loss that trains a discriminator with an optimizer of its own."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.other = nn.Linear(8, 1)
        self.optimizer = torch.optim.Adam(self.other.parameters(), 0.1)

    def __call__(self, model: nn.Module, batch: object) -> Tensor:
        inputs, _ = unpacked(batch)
        if not model.training:
            return cross_entropy(model, batch)
        self.optimizer.zero_grad()
        (self.other(inputs) - 1).square().mean().backward()
        self.optimizer.step()
        loss: Tensor = cross_entropy(model, batch) * (1 + self.other(inputs).detach().square().mean())
        return loss


def adversarial() -> Task:
    return replace(a_task(100), loss=Adversarial())


class Bank(nn.Module):
    """Keeps the inputs of all batches."""

    bank: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("bank", torch.zeros(0, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.bank = torch.cat([self.bank, inputs.detach()])
        outputs: Tensor = self.net(inputs)
        return outputs


def banked() -> Task:
    task = a_task(100)
    model = Bank(task.model)
    return replace(task, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("fresh", [averaged, scheduled, counting, adversarial, banked], ids=lambda fresh: fresh.__name__)
def test_a_resumed_run_with_extra_state_matches_an_uninterrupted_run(tmp_path: Path, fresh: Callable[[], Task]) -> None:
    whole, resumed = fresh(), fresh()
    train(whole, PLAN, TrainOptions(epochs=2))
    train(fresh(), PLAN, TrainOptions(epochs=2, max_steps=4), checkpoint=tmp_path / "run.pt")
    train(resumed, PLAN, TrainOptions(epochs=2, max_steps=9), checkpoint=tmp_path / "run.pt", resume=True)
    resumed = fresh()
    train(resumed, PLAN, TrainOptions(epochs=2), checkpoint=tmp_path / "run.pt", resume=True)
    assert torch.equal(parameters(resumed), parameters(whole))


def test_a_checkpoint_with_extra_state_of_another_program_is_rejected(tmp_path: Path) -> None:
    train(averaged(), PLAN, TrainOptions(max_steps=4), checkpoint=tmp_path / "run.pt")
    with pytest.raises(UsageError) as caught:
        train(a_task(100), PLAN, TrainOptions(), checkpoint=tmp_path / "run.pt", resume=True)
    assert "no object with a state, but the checkpoint has the state of AveragedModel" in caught.value.known


def test_a_large_constant_teacher_and_a_wrapper_of_the_model_are_not_saved() -> None:
    task = a_task(100)
    teacher, wrapper = nn.Linear(2048, LARGE_BYTES // 2048 // 4 + 1), nn.Sequential(task.model)

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert not teacher.training or wrapper
        return cross_entropy(model, batch)

    beside = ExtraState(replace(task, loss=loss))
    assert beside.state()["states"] == [None, {}]
    with torch.no_grad():
        teacher.weight.mul_(0.5)
    assert beside.state()["states"] != [None, {}]


def test_an_unsupported_extra_state_does_not_make_the_checkpoint_unreadable(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, object]:
            return {"path": tmp_path}

        def load_state_dict(self, state: dict[str, object]) -> None:
            raise AssertionError

    odd = Odd()

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert odd.state_dict()
        return cross_entropy(model, batch)

    task = replace(a_task(100), loss=loss)
    train(task, PLAN, TrainOptions(max_steps=2), checkpoint=tmp_path / "run.pt")
    train(task, PLAN, TrainOptions(max_steps=4), checkpoint=tmp_path / "run.pt", resume=True)


class Wrapper(torch.optim.Optimizer):
    """Has a `state_dict` of its own, and torch's `load_state_dict`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        self.optimizer.step()
        return None

    def state_dict(self) -> dict[str, object]:
        return {"fast": self.optimizer.state_dict()}


def test_an_optimizer_that_cannot_load_its_state_is_reported(tmp_path: Path) -> None:
    task = a_task(100)
    task, progress = replace(task, optimizer=Wrapper(task.optimizer)), Recorded()
    train(task, PLAN, TrainOptions(max_steps=2), checkpoint=tmp_path / "run.pt", progress=progress)
    notices = [fields["text"] for name, fields in progress.events if name == "notice"]
    assert any("cannot be resumed" in str(text) and "no load_state_dict()" in str(text) for text in notices)
    with pytest.raises(UsageError, match="Wrapper cannot load its own state"):
        train(task, PLAN, TrainOptions(max_steps=4), checkpoint=tmp_path / "run.pt", resume=True)


class Bare(Wrapper):
    """Does not call the constructor of torch's optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state


def test_a_missing_call_to_super_init_is_reported() -> None:
    assert "Bare.__init__ does not call super().__init__" in why_not_resumable(Bare(a_task(100).optimizer))
    assert not why_not_resumable(a_task(100).optimizer)


def test_a_full_disk_is_reported_instead_of_the_torch_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reports `unexpected pos 16384 vs 16276`."""

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"x" * 4096)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 16384 vs 16276")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("os.statvfs", lambda path: type("Disk", (), {"f_bavail": 0, "f_frsize": 4096}))
    with pytest.raises(Exception, match="could not be written") as caught:
        save_checkpoint(tmp_path / "run.pt", standing(), task=a_task())
    assert getattr(caught.value, "known", "") == "the disk is full"
