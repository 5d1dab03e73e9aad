"""Activation checkpointing: the same gradients, less memory, and modules that cannot have it."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from batchcal.core.errors import UsageError
from batchcal.core.units import MIB
from batchcal.workload.model.activation_checkpointing import GradientCheckpointManager


class Block(nn.Module):
    """Counts how often it is computed."""

    def __init__(self, width: int, *, dropout: float = 0.3, normal: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.normal = nn.BatchNorm1d(width) if normal else nn.Identity()
        self.computed = 0

    def forward(self, inputs: Tensor, *, scale: float = 1.0) -> Tensor:
        self.computed += 1
        found = inputs + scale * self.dropout(self.outer(torch.nn.functional.gelu(self.inner(inputs))))
        normal = self.normal(found)
        assert isinstance(normal, Tensor)
        return normal


class Stack(nn.Module):
    def __init__(self, width: int = 8, layers: int = 3, *, normal: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.blocks = nn.ModuleList(Block(width, normal=normal) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        seen = self.first(inputs)
        for block in self.blocks:
            seen = block(seen, scale=0.5)
        found = self.head(seen)
        assert isinstance(found, Tensor)
        return found

    def computed(self) -> list[int]:
        return [block.computed for block in self.blocks if isinstance(block, Block)]


def stack(**options: bool) -> Stack:
    torch.manual_seed(0)
    return Stack(**options)


def gradients(model: Stack) -> list[Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    model(inputs).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_checkpointing_keeps_gradients_and_computes_each_block_twice() -> None:
    plain, checkpointed = stack(), stack()
    names = list(checkpointed.state_dict())
    manager = GradientCheckpointManager(checkpointed)
    assert manager.names == ("blocks.0", "blocks.1", "blocks.2")
    with manager:
        assert list(checkpointed.state_dict()) == names
        for one, other in zip(gradients(plain), gradients(checkpointed), strict=True):
            assert torch.equal(one, other)
        assert checkpointed.computed() == [2, 2, 2]
    gradients(checkpointed)
    assert checkpointed.computed() == [3, 3, 3], "off again"


def test_an_evaluation_computes_each_block_once() -> None:
    model = stack()
    with GradientCheckpointManager(model), torch.no_grad():
        model(torch.randn(4, 8))
    assert model.computed() == [1, 1, 1]


def test_enabling_checkpointing_twice_has_no_further_effect() -> None:
    model = stack()
    manager = GradientCheckpointManager(model, "blocks.1")
    manager.enable()
    manager.enable()
    gradients(model)
    assert model.computed() == [1, 2, 1]
    assert len(pickle.dumps(model)) > 0, "it may travel to another process"
    manager.disable()
    manager.disable()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("modules", "names"), [("blocks.0, head", ("blocks.0", "head")), ("first", ("first.0", "first.1"))])
def test_checkpointed_modules_can_be_named_individually_or_by_their_list(modules: str, names: tuple[str, ...]) -> None:
    assert GradientCheckpointManager(stack(), modules).names == names


def test_modules_that_cannot_be_checkpointed_are_rejected() -> None:
    with pytest.raises(UsageError, match="no module 'layers'") as caught:
        GradientCheckpointManager(stack(), "layers")
    assert "blocks" in caught.value.known
    with pytest.raises(UsageError, match="no list of similar modules"):
        GradientCheckpointManager(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="BatchNorm"):
        GradientCheckpointManager(stack(normal=True))


def test_memory_savings_and_time_cost_of_checkpointing_are_measured() -> None:
    torch.manual_seed(0)
    model = Stack(128, 4)
    inputs = torch.randn(16_384, 128)

    def step() -> None:
        model.zero_grad()
        model(inputs).square().mean().backward()

    manager = GradientCheckpointManager(model)
    cost = manager.measure(step, torch.device("cpu"), rounds=1)
    assert not manager.enabled
    # Four blocks keep 80 MiB each; with checkpointing their inputs of 8 MiB, and one block at a time.
    assert cost.saved_bytes > 30 * MIB  # a heap that other tests have used keeps some back
    assert 0.05 < cost.saved_share < 1
    assert -0.5 < cost.time_share < 3
