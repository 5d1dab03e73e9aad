"""What a balancer sees of an optimizer step: its parts, those that failed, tasks that are absent, losses that say nothing."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy

import pytest
import torch

from batchcal.core.errors import UsageError
from batchcal.extras.multitask.gradnorm import GradNormBalancer, Rule
from tests.support.weighed import RULES, Slopes, TwoHeads, on_slopes, stepped, two_tasks


def test_gradient_norms_do_not_depend_on_the_split_into_micro_batches() -> None:
    model = TwoHeads()
    inputs, targets = two_tasks(12)
    logs: list[dict[str, float]] = []
    for cuts in ([0, 12], [0, 5, 6, 12]):
        balancer = GradNormBalancer(model, shared=model.trunk[2].parameters(), interval=1)
        parts = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
        micro_batches = [model.losses(inputs[part], {name: target[part] for name, target in targets.items()}) for part in parts]
        stepped(balancer, *micro_batches, weights=[part.stop - part.start for part in parts])
        logs.append({**balancer.log(), **{f"after_{name}": weight for name, weight in balancer.weights.items()}})
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    assert logs[0]["grad_norm_loud"] > 5 * logs[0]["grad_norm_quiet"] > 0


def test_observing_losses_does_not_change_the_gradients() -> None:
    model = TwoHeads()
    watched = deepcopy(model)
    balancer = GradNormBalancer(watched, shared=watched.trunk[2].parameters(), initial_weights={"quiet": 3.0, "loud": 1.0})
    losses = watched.losses(*two_tasks(8))
    loss = balancer.loss(losses)
    balancer.observe(losses, weight=8.0)
    loss.backward()
    plain = model.losses(*two_tasks(8))
    (1.5 * plain["quiet"] + 0.5 * plain["loud"]).backward()
    for mine, other in zip(watched.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_failed_micro_batch_does_not_change_the_gradient_norms() -> None:
    model = TwoHeads()
    inputs, targets = two_tasks(8)
    halves = [model.losses(inputs[part], {name: one[part] for name, one in targets.items()}) for part in (slice(4), slice(4, 8))]
    logs: list[dict[str, float]] = []
    for fails in (False, True):
        balancer = GradNormBalancer(model, shared=model.trunk[2].parameters(), interval=1)
        if fails:
            balancer.take_back(balancer.observe(model.losses(inputs, targets), weight=8.0))
        stepped(balancer, *halves, weights=[4.0, 4.0])
        logs.append(balancer.log())
    assert logs[0] == logs[1]


def test_an_evaluation_between_steps_does_not_change_the_balancer() -> None:
    logs: list[dict[str, float]] = []
    for evaluates in (False, True):
        model = TwoHeads()
        balancer = GradNormBalancer(model, interval=1)
        for step in range(3):
            if evaluates:
                with torch.no_grad():
                    balancer.observe(model.losses(*two_tasks(64, seed=99)))
            stepped(balancer, model.losses(*two_tasks(8, seed=step)))
        logs.append(balancer.log())
    assert logs[0] == logs[1]


def test_only_the_last_observation_can_be_undone() -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio")
    losses = model.losses({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    first = balancer.observe(losses)
    balancer.observe(losses)
    with pytest.raises(UsageError, match="only the last observation"):
        balancer.take_back(first)


@pytest.mark.parametrize("rule", RULES)
def test_an_absent_task_keeps_its_weight_and_the_other_tasks_are_balanced(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule)
    lengths, values = {"a": 1.0, "b": 2.0, "c": 5.0}, {"a": 1.0, "b": 1.0, "c": 1.0}
    stepped(balancer, model.losses(lengths, values))
    before = balancer.weights
    stepped(balancer, model.losses({"a": 1.0, "c": 5.0}, values))
    assert balancer.weights["b"] == before["b"]
    assert balancer.weights["a"] > before["a"]
    assert sum(balancer.weights.values()) == pytest.approx(3.0)
    alone = balancer.weights
    stepped(balancer, model.losses({"b": 2.0}, values))
    assert balancer.weights == alone


def test_tasks_in_separate_micro_batches_are_balanced() -> None:
    model = Slopes()
    apart, together = on_slopes(model, rule="ratio"), on_slopes(model, rule="ratio")
    losses = model.losses({"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 2.0})
    stepped(together, losses)
    stepped(apart, *({name: 2 * loss} for name, loss in losses.items()))
    assert apart.weights == pytest.approx(together.weights)


def test_a_task_that_starts_later_gets_weight_one_and_its_own_initial_loss() -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio")
    stepped(balancer, model.losses({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}))
    losses = model.losses({"a": 1.0, "b": 2.0, "late": 1.0}, {"a": 1.0, "b": 1.0, "late": 9.0})
    assert balancer.loss({"late": losses["late"]}).item() == pytest.approx(9.0)
    stepped(balancer, losses)
    assert sum(balancer.weights.values()) == pytest.approx(3.0)
    assert balancer.state_dict()["initial_losses"] == pytest.approx({"a": 1.0, "b": 1.0, "late": 9.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_is_not_positive_and_finite_does_not_change_the_weights(value: float) -> None:
    model = Slopes()
    for rule in RULES:
        balancer = on_slopes(model, rule=rule)
        stepped(balancer, model.losses({"a": 1.0, "b": 3.0}, {"a": value, "b": 1.0}))
        assert balancer.weights == {"a": 1.0, "b": 1.0}
        stepped(balancer, model.losses({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 1.0}))
        assert balancer.weights["a"] > balancer.weights["b"] > 0


@pytest.mark.parametrize("length", [math.nan, math.inf, 0.0])
def test_a_zero_nan_or_infinite_gradient_does_not_change_the_weights(length: float) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio")
    stepped(balancer, model.losses({"a": length, "b": 3.0}, {"a": 1.0, "b": 1.0}))
    assert balancer.weights == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("rule", RULES)
def test_the_weight_of_a_task_recovers_after_its_loss_was_zero(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule, rate=1.0)
    stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}))
    for _ in range(50):
        stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0}))
    assert 0.005 < balancer.weights["a"] < 0.1
    for _ in range(50):
        stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.5}))
    assert balancer.weights["a"] > 1


def test_a_constant_loss_keeps_its_weight_and_the_other_tasks_are_balanced() -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model, interval=1)
    for _ in range(3):
        losses = {**model.losses(*two_tasks(4)), "constant": torch.tensor(2.0)}
        stepped(balancer, losses)
    assert balancer.weights["constant"] == 1.0
    assert balancer.weights["quiet"] > balancer.weights["loud"]


def test_gradient_norms_do_not_depend_on_the_loss_scale() -> None:
    model = TwoHeads()
    logs = []
    for scale in (1.0, 2.0**16):
        balancer = GradNormBalancer(model, shared=model.trunk[2].parameters(), interval=1)
        balancer.observe(model.losses(*two_tasks(8)), scale=scale)
        balancer.after_step()
        logs.append(balancer.log())
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
