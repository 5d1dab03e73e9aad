"""The one step: gradients do not depend on how a group was split, and what cannot be a loss is told from what can."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import TensorDataset

from batchcal.core.errors import UserCodeError
from batchcal.workload.step import batch_weight, evaluate, finish_group, forward_backward, make_scaler, move, prepare
from batchcal.workload.task import Task

CPU, META = torch.device("cpu"), torch.device("meta")


def classification(loss: Callable[..., object] | None = None, **changes: object) -> Task:
    """A small model in float64; batches are (inputs, targets). Changes may be what no Task should hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    task = Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        train_data=TensorDataset(torch.zeros(1)),
        loss=lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
    )
    for name, value in {**changes, **({} if loss is None else {"loss": loss})}.items():
        object.__setattr__(task, name, value)
    return task


def samples(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (count,), generator=generator)


def updated(task: Task, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The parameters after one group."""
    total = 0.0
    for batch in batches:
        weight = batch_weight(task, batch, len(batch[0]))
        forward_backward(task, batch, weight=weight, scaler=None)
        total += weight
    finish_group(task, total, scaler=None)
    return [parameter.detach().clone() for parameter in task.model.parameters()]


def test_a_smaller_last_group_is_weighted_by_its_own_samples() -> None:
    whole, rest = samples(24), samples(5)
    split, undivided = classification(), classification()
    for task, sizes in ((split, (16, 8)), (undivided, (24,))):
        updated(task, list(zip(whole[0].split(sizes), whole[1].split(sizes), strict=True)))
    last = [(rest[0][:4], rest[1][:4]), (rest[0][4:], rest[1][4:])]
    torch.testing.assert_close(updated(split, last), updated(undivided, [rest]), rtol=0, atol=1e-12)


def test_forward_backward_returns_the_mean_loss() -> None:
    task, batch = classification(), samples(6)
    expected = functional.cross_entropy(task.model(batch[0]), batch[1]).item()
    assert forward_backward(task, batch, weight=6.0, scaler=None) == pytest.approx(expected, abs=1e-12)


def test_a_group_clears_gradients_of_parameters_outside_the_optimizer() -> None:
    task = classification()
    half = torch.optim.SGD(list(task.model.parameters())[:1], lr=0.1)
    object.__setattr__(task, "optimizer", half)
    updated(task, [samples(4)])
    assert all(parameter.grad is None for parameter in task.model.parameters())


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda model, batch: model(batch[0]).mean().item(), "loss returned -?[0-9.e-]+\n"),
        (lambda model, batch: None, "loss returned None"),
        (lambda model, batch: [model(batch[0])], "loss returned a list"),
        (lambda model, batch: model(batch[0]), r"loss returned a tensor of shape \(4, 3\)"),
        (lambda model, batch: batch[1].sum(), "of shape .* and type torch.int64"),
    ],
)
def test_an_invalid_loss_is_a_user_error(loss: Callable[..., object], what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        forward_backward(classification(loss), samples(4), weight=4.0, scaler=None)
    assert caught.value.known
    assert caught.value.try_


@pytest.mark.parametrize(
    ("result_of", "try_"),
    [
        (lambda loss: {"loss": loss, "accuracy": 0.5}, "return result['loss']"),
        (lambda loss: {"boxes": loss, "classes": loss}, "return sum(result.values())"),
        (lambda loss: (loss, None), "result[0]"),
        (lambda loss: SimpleNamespace(loss=loss), "return result.loss"),
        (lambda loss: None, "no return value"),
        (lambda loss: loss.detach().item(), "without .item()"),
        (lambda loss: (loss > 0).sum(), "metrics"),
    ],
)
def test_the_error_for_an_invalid_loss_shows_how_to_return_the_loss(result_of: Callable[[Tensor], object], try_: str) -> None:
    task = classification(lambda model, batch: result_of(model(batch[0]).mean()))
    with pytest.raises(UserCodeError) as caught:
        forward_backward(task, samples(4), weight=4.0, scaler=None)
    assert try_ in caught.value.try_


def test_a_loss_of_one_element_is_accepted() -> None:
    task = classification(lambda model, batch: model(batch[0]).mean().reshape(1, 1))
    assert isinstance(forward_backward(task, samples(4), weight=4.0, scaler=None), float)


def test_an_exception_of_the_loss_function_is_propagated() -> None:
    def fails(model: nn.Module, batch: object) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        forward_backward(classification(fails), samples(4), weight=4.0, scaler=None)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "4", None, torch.ones(2)])
def test_a_weight_that_is_negative_or_not_a_finite_number_is_rejected(weight: object) -> None:
    with pytest.raises(UserCodeError, match="weight_of returned"):
        batch_weight(classification(weight_of=lambda batch: weight), samples(4), 4)


def test_weights_may_be_tensors_and_default_to_samples() -> None:
    assert batch_weight(classification(weight_of=lambda batch: torch.tensor(7)), samples(4), 4) == 7.0
    assert batch_weight(classification(), samples(4), 4) == 4.0


def test_a_group_with_zero_weight_is_rejected_before_the_update() -> None:
    task = classification()
    before = copy.deepcopy(task.model.state_dict())
    forward_backward(task, samples(4), weight=0.0, scaler=None)
    with pytest.raises(UserCodeError, match="weights of the micro-batches of an optimizer step sum to 0"):
        finish_group(task, 0.0, scaler=None)
    torch.testing.assert_close(task.model.state_dict(), before)


def test_autocast_applies_to_training_and_evaluation() -> None:
    seen: list[torch.dtype] = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0].float())
        seen.append(logits.dtype)
        return functional.cross_entropy(logits.float(), batch[1])

    task = classification(loss, autocast=torch.bfloat16)
    task.model.float()
    forward_backward(task, samples(4), weight=4.0, scaler=None)
    evaluate(task, samples(4))
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_float16_uses_a_scaler_that_does_not_change_the_update() -> None:
    assert make_scaler(classification(), CPU) is None
    assert make_scaler(classification(autocast=torch.bfloat16), CPU) is None
    plain, scaled = classification(), classification()
    scaler = make_scaler(classification(autocast=torch.float16), CPU)
    assert scaler is not None
    expected = updated(plain, [samples(8)])
    for part in zip(*(whole.split(5) for whole in samples(8)), strict=True):
        forward_backward(scaled, part, weight=float(len(part[0])), scaler=scaler)
    finish_group(scaled, 8.0, scaler=scaler)
    torch.testing.assert_close([parameter.detach() for parameter in scaled.model.parameters()], expected, rtol=0, atol=1e-12)


def test_a_scaler_skips_an_update_that_is_not_finite() -> None:
    task = classification(lambda model, batch: model(batch[0]).mean() * float("inf"))
    scaler = make_scaler(classification(autocast=torch.float16), CPU)
    assert scaler is not None
    before = copy.deepcopy(task.model.state_dict())
    forward_backward(task, samples(4), weight=4.0, scaler=scaler)
    finish_group(task, 4.0, scaler=scaler)
    torch.testing.assert_close(task.model.state_dict(), before)


def test_evaluation_uses_eval_step_without_gradients() -> None:
    task = classification(eval_step=lambda model, batch: (model(batch[0]), torch.is_grad_enabled()))
    result = evaluate(task, samples(4), device=CPU)
    assert isinstance(result, tuple)
    assert result[1] is False
    loss = evaluate(classification(), samples(4))
    assert isinstance(loss, Tensor)
    assert not loss.requires_grad


class Named(NamedTuple):
    inputs: Tensor
    length: int


@dataclass(frozen=True)
class Frozen:
    inputs: Tensor
    names: list[str]
    derived: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", self.inputs * 2)


class Encoding:
    """Moves itself, as a tokenizer's output does."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def to(self, device: torch.device) -> Encoding:
        return Encoding(self.ids.to(device))


def test_move_supports_every_container_type() -> None:
    tensor = torch.ones(2)
    counts: defaultdict[str, object] = defaultdict(list, a=tensor)
    frozen = Frozen(tensor, ["a"])
    batch = {
        "tensor": tensor,
        "list": [tensor, (tensor, "text", None, 3)],
        "named": Named(tensor, 2),
        "dataclass": frozen,
        "ordered": OrderedDict(b=tensor),
        "default": counts,
        "read only": MappingProxyType({"c": tensor}),
        "packed": pack_sequence([tensor]),
        "encoding": Encoding(tensor),
        "class": Named,
        "bytes": b"x",
    }
    moved = move(batch, META)
    assert isinstance(moved, dict)
    assert moved["tensor"].is_meta
    assert moved["list"][0].is_meta
    assert moved["list"][1][0].is_meta
    assert moved["list"][1][1:] == ("text", None, 3)
    assert isinstance(moved["named"], Named)
    assert moved["named"].inputs.is_meta
    assert moved["named"].length == 2
    assert isinstance(moved["dataclass"], Frozen)
    assert moved["dataclass"].inputs.is_meta
    assert moved["dataclass"].derived.is_meta
    assert isinstance(moved["ordered"], OrderedDict)
    assert moved["ordered"]["b"].is_meta
    assert isinstance(moved["default"], defaultdict)
    assert moved["default"]["a"].is_meta
    assert moved["default"]["new"] == []
    assert moved["read only"]["c"].is_meta
    assert isinstance(moved["packed"], PackedSequence)
    assert moved["packed"].data.is_meta
    assert moved["encoding"].ids.is_meta
    assert moved["class"] is Named
    assert moved["bytes"] == b"x"
    assert not tensor.is_meta  # what was given stays as it was
    assert not frozen.inputs.is_meta
    assert counts["a"] is tensor


def tempered() -> tuple[Task, nn.Parameter]:
    """With Adam, whose state has run a step, over the model and one parameter that is not the model's."""
    task = classification()
    temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    object.__setattr__(task, "optimizer", torch.optim.Adam([*task.model.parameters(), temperature]))
    object.__setattr__(task, "loss", lambda model, batch: functional.cross_entropy(model(batch[0]) * temperature, batch[1]))
    updated(task, [samples(4)])
    return task, temperature


def test_preparing_keeps_the_optimizers_parameters() -> None:
    task, temperature = tempered()
    before = [id(parameter) for parameter in task.optimizer.param_groups[0]["params"]]
    state = copy.deepcopy(task.optimizer.state_dict())
    prepare(task, CPU)
    assert [id(parameter) for parameter in task.optimizer.param_groups[0]["params"]] == before
    assert before == [id(parameter) for parameter in [*task.model.parameters(), temperature]]
    torch.testing.assert_close(task.optimizer.state_dict(), state)


@pytest.mark.gpu
def test_a_prepared_task_computes_the_same_update_on_the_accelerator() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    (here, _), (there, temperature) = tempered(), tempered()
    before = [id(parameter) for parameter in there.optimizer.param_groups[0]["params"]]
    prepare(there, device)
    assert [id(parameter) for parameter in there.optimizer.param_groups[0]["params"]] == before
    assert temperature.device.type == device.type
    for state in there.optimizer.state.values():
        assert state["exp_avg"].device.type == device.type
        assert state["step"].device.type == "cpu"  # Adam counts on the CPU
    batch = move(samples(8), device)
    assert isinstance(batch, tuple)
    torch.testing.assert_close([one.cpu() for one in updated(there, [batch])], updated(here, [samples(8)]), rtol=0, atol=1e-10)
