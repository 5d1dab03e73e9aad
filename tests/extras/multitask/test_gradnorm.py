"""Weights of task losses: against numbers worked out by hand, and on tasks of which one is louder than the other."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.extras.multitask.gradnorm import GradNormBalancer, Rule
from tests.support.weighed import RULES, Slopes, TwoHeads, on_slopes, stepped, trained, two_tasks

# Norms 1 and 3, both losses as at first: mean 2, wanted 2 and 2.
BY_HAND: dict[Rule, dict[str, float]] = {
    # In units of the mean 0.5 and 1.5: 1 + 0.1 x 0.5 = 1.05 and 1 - 0.1 x 1.5 = 0.85, scaled to sum to 2.
    "paper": {"quiet": 1.05 * 2 / 1.9, "loud": 0.85 * 2 / 1.9},
    # (2 / 1) ** 0.1 and (2 / 3) ** 0.1, scaled alike.
    "ratio": {
        "quiet": 2 * 2**0.1 / (2**0.1 + (2 / 3) ** 0.1),
        "loud": 2 * (2 / 3) ** 0.1 / (2**0.1 + (2 / 3) ** 0.1),
    },
}


@pytest.mark.parametrize("rule", RULES)
def test_the_first_weight_update_matches_a_manual_calculation(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule, rate=0.1)
    stepped(balancer, model.losses({"quiet": 1.0, "loud": 3.0}, {"quiet": 5.0, "loud": 7.0}))
    assert balancer.weights == pytest.approx(BY_HAND[rule])


def test_later_weight_updates_depend_on_the_training_rates_of_the_tasks() -> None:
    """One loss halved, the other as it was: rates 0.5 and 1, mean 0.75; both gradients are 2 long."""
    model = Slopes()
    balancer = on_slopes(model, rule="paper", rate=0.05)
    norms = {"fast": 2.0, "slow": 2.0}
    stepped(balancer, model.losses(norms, {"fast": 4.0, "slow": 4.0}))
    assert balancer.weights == {"fast": 1.0, "slow": 1.0}
    stepped(balancer, model.losses(norms, {"fast": 2.0, "slow": 4.0}))
    # Wanted 2 x (2/3)^1.5 = 1.09 and 2 x (4/3)^1.5 = 3.08; both are the mean: 1 - 0.05 and 1 + 0.05.
    assert balancer.weights == pytest.approx({"fast": 0.95, "slow": 1.05})


@pytest.mark.parametrize("rule", RULES)
def test_both_rules_converge_to_the_target_gradient_norms(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule, rate=0.005 if rule == "paper" else None)
    lengths, values = {"a": 1.0, "b": 4.0, "c": 2.0}, {"a": 3.0, "b": 3.0, "c": 3.0}
    for _ in range(400):
        stepped(balancer, model.losses(lengths, values))
        assert sum(balancer.weights.values()) == pytest.approx(3.0, abs=1e-9)
    # Alike gradients: weights as 1 : 1/4 : 1/2.
    assert balancer.weights == pytest.approx({"a": 12 / 7, "b": 3 / 7, "c": 6 / 7}, abs=0.02)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_losses_does_not_change_the_weights(rule: Rule, scale: float) -> None:
    model = Slopes()
    small, large = on_slopes(model, rule=rule), on_slopes(model, rule=rule)
    stepped(small, model.losses({"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 3.0}))
    stepped(large, model.losses({"a": scale, "b": 4 * scale}, {"a": 2 * scale, "b": 3 * scale}))
    assert large.weights == pytest.approx(small.weights, rel=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_log_contains_the_weights_losses_and_norms_of_the_step(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule, interval=2)
    losses = model.losses({"T1": 1.0, "T2": 3.0}, {"T1": 5.0, "T2": 7.0})
    stepped(balancer, losses)
    assert balancer.log() == pytest.approx(
        {"weight_T1": 1, "weight_T2": 1, "loss_T1": 5, "loss_T2": 7, "grad_norm_T1": 1, "grad_norm_T2": 3}
    )
    used = balancer.weights
    stepped(balancer, losses)
    assert {name: value for name, value in balancer.log().items() if "weight" in name} == pytest.approx(
        {f"weight_{name}": weight for name, weight in used.items()}
    )
    assert not any(name.startswith("grad_norm") for name in balancer.log())


def test_weights_change_only_at_the_update_interval() -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio", interval=3)
    seen: list[float] = []
    for _ in range(7):
        stepped(balancer, model.losses({"a": 1.0, "b": 4.0}, {"a": 1.0, "b": 1.0}))
        seen.append(balancer.weights["a"])
    assert [place for place in range(1, 7) if seen[place] != seen[place - 1]] == [3, 6]


def progress_left(rule: Rule | None, *, steps: int = 300) -> dict[str, float]:
    """L / L(0) of both tasks after some steps, with weights by `rule` or all 1."""
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    balancer = GradNormBalancer(model, rule="ratio" if rule is None else rule, interval=1)
    first: dict[str, float] = {}
    for step in range(steps):
        losses = model.losses(*two_tasks(32, seed=step))
        first = first or {name: loss.item() for name, loss in losses.items()}
        loss = balancer.loss(losses)
        if rule is not None:
            balancer.observe(losses)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rule is not None:
            balancer.after_step()
            assert sum(balancer.weights.values()) == pytest.approx(2.0)
    with torch.no_grad():
        last = model.losses(*two_tasks(512, seed=999))
    return {name: last[name].item() / first[name] for name in first}


@pytest.mark.parametrize("rule", RULES)
def test_gradnorm_speeds_up_a_task_with_small_gradients(rule: Rule) -> None:
    alone, balanced = progress_left(None), progress_left(rule)
    apart = [abs(math.log(left["quiet"] / left["loud"])) for left in (balanced, alone)]
    assert balanced["quiet"] < 0.9 * alone["quiet"]
    assert apart[0] < 0.7 * apart[1]


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_balancer_continues_exactly(rule: Rule) -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model, rule=rule, interval=3)
    trained(balancer, model, range(5))
    again = deepcopy(model)
    resumed = GradNormBalancer(again, rule=rule, interval=3)
    resumed.load_state_dict(deepcopy(balancer.state_dict()))
    trained(balancer, model, range(5, 12))
    trained(resumed, again, range(5, 12))
    assert resumed.weights == balancer.weights
    assert resumed.shared == balancer.shared == ("trunk.2.weight",)
    assert resumed.log() == balancer.log()
    for mine, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_resumed_balancer_keeps_its_shared_weights_if_a_task_is_absent() -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model, interval=1)
    trained(balancer, model, range(2))
    resumed = GradNormBalancer(model, interval=1)
    resumed.load_state_dict(balancer.state_dict())
    inputs, targets = two_tasks(4)
    stepped(resumed, model.losses(inputs, {"quiet": targets["quiet"]}))
    assert resumed.shared == ("trunk.2.weight",)
    assert "grad_norm_quiet" in resumed.log()


def test_the_balancer_state_loads_with_weights_only(tmp_path: Path) -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model)
    trained(balancer, model, range(2))
    path = tmp_path / "state.pt"
    torch.save(balancer.state_dict(), path)
    assert torch.load(path, weights_only=True) == balancer.state_dict()


def test_a_balancer_state_that_is_invalid_or_from_another_model_is_rejected() -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model)
    with pytest.raises(UsageError, match="not valid"):
        balancer.load_state_dict({"weights": [1, 2]})
    trained(balancer, model, range(2))
    with pytest.raises(UsageError, match="belongs to another model"):
        GradNormBalancer(Slopes()).load_state_dict(balancer.state_dict())


def test_initial_weights_sum_to_the_number_of_tasks_and_apply_to_the_loss() -> None:
    balancer = GradNormBalancer(Slopes(), initial_weights={"a": 3.0, "b": 1.0})
    assert balancer.weights == {"a": 1.5, "b": 0.5}
    assert float(balancer.loss({"a": torch.tensor(2.0), "b": torch.tensor(4.0)})) == pytest.approx(5.0)


def test_initial_losses_can_be_given() -> None:
    model = Slopes()
    balancer = GradNormBalancer(model, shared=[model.shared], initial_losses={"a": 2.0}, interval=1)
    stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 4.0, "b": 4.0}))
    assert balancer.weights["a"] > balancer.weights["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha = -1.0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"least_weight": 1.0}, "least_weight = 1.0"),
    ],
)
def test_an_invalid_alpha_learning_rate_or_least_weight_is_rejected(options: dict[str, float], message: str) -> None:
    defaults = {"alpha": 1.5, "learning_rate": 0.1, "least_weight": 0.01}
    chosen = {**defaults, **options}
    with pytest.raises(UsageError, match=message):
        GradNormBalancer(
            Slopes(), alpha=chosen["alpha"], learning_rate=chosen["learning_rate"], least_weight=chosen["least_weight"]
        )


def test_invalid_intervals_initial_values_and_shared_weights_are_rejected() -> None:
    model = Slopes()
    with pytest.raises(UsageError, match="interval = 0"):
        GradNormBalancer(model, interval=0)
    with pytest.raises(UsageError, match="initial weight of 'a' is 0"):
        GradNormBalancer(model, initial_weights={"a": 0.0})
    with pytest.raises(UsageError, match="initial loss of 'a' is nan"):
        GradNormBalancer(model, initial_losses={"a": math.nan})
    with pytest.raises(UsageError, match="requires a gradient"):
        GradNormBalancer(model, shared=[])


def test_a_step_without_observation_and_a_batch_without_task_losses_are_rejected() -> None:
    balancer = GradNormBalancer(Slopes())
    with pytest.raises(UsageError, match="after_step needs"):
        balancer.after_step()
    with pytest.raises(UserCodeError, match="no task loss"):
        balancer.loss({})
