"""Which weights the tasks share: found by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from batchcal.core.errors import UserCodeError
from batchcal.extras.multitask.gradnorm import GradNormBalancer
from batchcal.workload.collator import HeterogeneousBatch
from batchcal.workload.examples import multiimage
from tests.support.weighed import Slopes, TwoHeads, stepped, two_tasks


def test_the_default_shared_weight_is_the_last_matrix_that_all_tasks_use() -> None:
    made = multiimage.task(torch.device("cpu"), samples=12, width=2)
    assert made.losses is not None
    assert made.collate_fn is not None
    balancer = GradNormBalancer(made.model)
    batches = [made.collate_fn([made.train_data[index] for index in indices]) for indices in ((0, 3), (1, 4), (2, 5))]
    for batch in batches:  # one kind each: only together they tell which weights are shared
        assert isinstance(batch, HeterogeneousBatch)
        balancer.observe(made.losses(made.model, batch))
    balancer.after_step()
    assert balancer.shared == ("layers.4.weight",)
    assert not any(name.startswith("grad_norm") for name in balancer.log())


def test_a_new_task_that_uses_fewer_layers_changes_the_shared_weight() -> None:
    model = TwoHeads()
    early = nn.Linear(32, 1)
    balancer = GradNormBalancer(model, interval=1)
    inputs, targets = two_tasks(4)
    stepped(balancer, model.losses(inputs, targets))
    assert balancer.shared == ("trunk.2.weight",)
    losses = {**model.losses(inputs, targets), "early": early(model.trunk[:2](inputs)).square().mean()}
    stepped(balancer, losses)
    assert balancer.shared == ("trunk.0.weight",)
    assert not any(name.startswith("grad_norm") for name in balancer.log())
    losses = {**model.losses(inputs, targets), "early": early(model.trunk[:2](inputs)).square().mean()}
    stepped(balancer, losses)
    assert {"grad_norm_quiet", "grad_norm_loud", "grad_norm_early"} <= balancer.log().keys()


def test_tasks_without_a_common_weight_are_rejected() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    losses = {name: model[name](torch.ones(1, 2)).sum() for name in ("a", "b")}
    with pytest.raises(UserCodeError, match="task 'b' has no weight in common with a"):
        GradNormBalancer(model).observe(losses)


class CompiledFunction(torch.autograd.Function):
    """Named as the one node that a compiled model leaves in the graph."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_a_compiled_graph_requires_explicit_shared_weights() -> None:
    model = Slopes()
    apply: Callable[..., Tensor] = CompiledFunction.apply
    hidden = {"a": apply(model.shared).sum()}
    with pytest.raises(UserCodeError, match="compiled graph") as caught:
        GradNormBalancer(model).observe(hidden)
    assert "shared=" in caught.value.try_
    GradNormBalancer(model, shared=[model.shared]).observe(hidden)
