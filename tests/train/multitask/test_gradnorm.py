"""Weights of task losses: against numbers worked out by hand, and on tasks of which one is louder than the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.train.multitask.gradnorm import GradNormBalancer, Rule
from batchcal.workload.collator import HeterogeneousBatch
from batchcal.workload.examples import multiimage

RULES: tuple[Rule, ...] = get_args(Rule)
Losses = Mapping[str, Tensor]


class Slopes(nn.Module):
    """Losses that are straight lines in one shared matrix: the gradient of each has the length that is asked for, always."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.ones(1, 2))

    def losses(self, lengths: Mapping[str, float], values: Mapping[str, float]) -> dict[str, Tensor]:
        """Each with its gradient's length and its own value."""
        sums = {name: self.shared[0, 0] * length for name, length in lengths.items()}
        return {name: line - line.detach() + values[name] for name, line in sums.items()}


def stepped(balancer: GradNormBalancer, *micro_batches: Losses, weights: Sequence[float] = ()) -> None:
    """One optimizer step, as far as the balancer sees it."""
    for losses, weight in zip(micro_batches, weights or [1.0] * len(micro_batches), strict=True):
        balancer.observe(losses, weight=weight)
    balancer.after_step()


def on_slopes(model: Slopes, *, rule: Rule, rate: float | None = None, interval: int = 1, alpha: float = 1.5) -> GradNormBalancer:
    return GradNormBalancer(model, shared=[model.shared], rule=rule, learning_rate=rate, interval=interval, alpha=alpha)


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
def test_the_first_update_is_the_one_worked_out_by_hand(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule, rate=0.1)
    stepped(balancer, model.losses({"quiet": 1.0, "loud": 3.0}, {"quiet": 5.0, "loud": 7.0}))
    assert balancer.weights == pytest.approx(BY_HAND[rule])


def test_a_later_update_takes_the_rates_into_account() -> None:
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
def test_both_rules_end_where_the_weighed_gradients_are_as_wanted(rule: Rule) -> None:
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
def test_how_large_the_losses_are_does_not_matter(rule: Rule, scale: float) -> None:
    model = Slopes()
    small, large = on_slopes(model, rule=rule), on_slopes(model, rule=rule)
    stepped(small, model.losses({"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 3.0}))
    stepped(large, model.losses({"a": scale, "b": 4 * scale}, {"a": 2 * scale, "b": 3 * scale}))
    assert large.weights == pytest.approx(small.weights, rel=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_log_says_what_the_step_was_made_with(rule: Rule) -> None:
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


def test_between_measurements_weights_stand_still() -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio", interval=3)
    seen: list[float] = []
    for _ in range(7):
        stepped(balancer, model.losses({"a": 1.0, "b": 4.0}, {"a": 1.0, "b": 1.0}))
        seen.append(balancer.weights["a"])
    assert [place for place in range(1, 7) if seen[place] != seen[place - 1]] == [3, 6]


class TwoHeads(nn.Module):
    """Two regressions on one trunk; what the second has to learn, and so its gradient, is ten times as large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
        self.heads = nn.ModuleDict({"quiet": nn.Linear(16, 4), "loud": nn.Linear(16, 4)})

    def losses(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the targets that are given."""
        features = self.trunk(inputs)
        return {name: (self.heads[name](features) - target).square().mean() for name, target in targets.items()}


def two_tasks(samples: int, *, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)
    inputs = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return inputs, {"quiet": torch.tanh(inputs @ first), "loud": 10 * torch.tanh(inputs @ second)}


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
def test_a_quiet_task_is_not_left_behind_by_a_loud_one(rule: Rule) -> None:
    alone, balanced = progress_left(None), progress_left(rule)
    apart = [abs(math.log(left["quiet"] / left["loud"])) for left in (balanced, alone)]
    assert balanced["quiet"] < 0.9 * alone["quiet"]
    assert apart[0] < 0.7 * apart[1]


def test_norms_are_those_of_the_step_however_it_was_split() -> None:
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


def test_what_backward_computes_is_not_changed_by_looking() -> None:
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


def test_a_micro_batch_that_failed_does_not_count() -> None:
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


def test_an_evaluation_between_steps_leaves_no_trace() -> None:
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


def test_only_what_is_not_settled_can_be_taken_back() -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio")
    losses = model.losses({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    first = balancer.observe(losses)
    balancer.observe(losses)
    with pytest.raises(UsageError, match="only the last observation"):
        balancer.take_back(first)


@pytest.mark.parametrize("rule", RULES)
def test_a_task_that_is_absent_keeps_its_weight_and_the_others_share_theirs(rule: Rule) -> None:
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


def test_tasks_that_never_meet_in_a_micro_batch_are_balanced_all_the_same() -> None:
    model = Slopes()
    apart, together = on_slopes(model, rule="ratio"), on_slopes(model, rule="ratio")
    losses = model.losses({"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 2.0})
    stepped(together, losses)
    stepped(apart, *({name: 2 * loss} for name, loss in losses.items()))
    assert apart.weights == pytest.approx(together.weights)


def test_a_task_that_comes_later_joins_with_weight_one_and_the_loss_it_comes_with() -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio")
    stepped(balancer, model.losses({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}))
    losses = model.losses({"a": 1.0, "b": 2.0, "late": 1.0}, {"a": 1.0, "b": 1.0, "late": 9.0})
    assert balancer.loss({"late": losses["late"]}).item() == pytest.approx(9.0)
    stepped(balancer, losses)
    assert sum(balancer.weights.values()) == pytest.approx(3.0)
    assert balancer.state_dict()["initial_losses"] == pytest.approx({"a": 1.0, "b": 1.0, "late": 9.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_says_nothing_moves_nothing(value: float) -> None:
    model = Slopes()
    for rule in RULES:
        balancer = on_slopes(model, rule=rule)
        stepped(balancer, model.losses({"a": 1.0, "b": 3.0}, {"a": value, "b": 1.0}))
        assert balancer.weights == {"a": 1.0, "b": 1.0}
        stepped(balancer, model.losses({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 1.0}))
        assert balancer.weights["a"] > balancer.weights["b"] > 0


@pytest.mark.parametrize("length", [math.nan, math.inf, 0.0])
def test_a_gradient_that_says_nothing_moves_nothing(length: float) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule="ratio")
    stepped(balancer, model.losses({"a": length, "b": 3.0}, {"a": 1.0, "b": 1.0}))
    assert balancer.weights == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("rule", RULES)
def test_a_task_that_is_done_does_not_lose_its_weight_for_good(rule: Rule) -> None:
    model = Slopes()
    balancer = on_slopes(model, rule=rule, rate=1.0)
    stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}))
    for _ in range(50):
        stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0}))
    assert 0.005 < balancer.weights["a"] < 0.1
    for _ in range(50):
        stepped(balancer, model.losses({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.5}))
    assert balancer.weights["a"] > 1


def test_constant_losses_have_no_gradient_and_do_no_harm() -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model, interval=1)
    for _ in range(3):
        losses = {**model.losses(*two_tasks(4)), "constant": torch.tensor(2.0)}
        stepped(balancer, losses)
    assert balancer.weights["constant"] == 1.0
    assert balancer.weights["quiet"] > balancer.weights["loud"]


def test_half_precision_gradients_are_scaled_before_they_vanish() -> None:
    model = TwoHeads()
    logs = []
    for scale in (1.0, 2.0**16):
        balancer = GradNormBalancer(model, shared=model.trunk[2].parameters(), interval=1)
        balancer.observe(model.losses(*two_tasks(8)), scale=scale)
        balancer.after_step()
        logs.append(balancer.log())
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)


def trained(balancer: GradNormBalancer, model: TwoHeads, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in steps:
        losses = model.losses(*two_tasks(16, seed=step))
        balancer.observe(losses)
        balancer.loss(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        balancer.after_step()


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_resumes_goes_on_exactly(rule: Rule) -> None:
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


def test_a_resumed_run_keeps_the_guess_although_not_every_task_is_back() -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model, interval=1)
    trained(balancer, model, range(2))
    resumed = GradNormBalancer(model, interval=1)
    resumed.load_state_dict(balancer.state_dict())
    inputs, targets = two_tasks(4)
    stepped(resumed, model.losses(inputs, {"quiet": targets["quiet"]}))
    assert resumed.shared == ("trunk.2.weight",)
    assert "grad_norm_quiet" in resumed.log()


def test_a_state_is_plain_enough_for_a_checkpoint_that_runs_no_code(tmp_path: Path) -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model)
    trained(balancer, model, range(2))
    path = tmp_path / "state.pt"
    torch.save(balancer.state_dict(), path)
    assert torch.load(path, weights_only=True) == balancer.state_dict()


def test_a_state_of_something_else_is_refused() -> None:
    model = TwoHeads()
    balancer = GradNormBalancer(model)
    with pytest.raises(UsageError, match="not understood"):
        balancer.load_state_dict({"weights": [1, 2]})
    trained(balancer, model, range(2))
    with pytest.raises(UsageError, match="of another model"):
        GradNormBalancer(Slopes()).load_state_dict(balancer.state_dict())


def test_the_guess_is_the_last_matrix_that_all_tasks_reach() -> None:
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


def test_a_guess_is_made_anew_for_a_task_that_does_not_reach_so_far() -> None:
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


def test_tasks_without_a_common_weight_are_said_to_have_none() -> None:
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


def test_no_guess_is_made_where_a_compiled_graph_hides_what_depends_on_what() -> None:
    model = Slopes()
    apply: Callable[..., Tensor] = CompiledFunction.apply
    hidden = {"a": apply(model.shared).sum()}
    with pytest.raises(UserCodeError, match="compiled graph") as caught:
        GradNormBalancer(model).observe(hidden)
    assert "shared=" in caught.value.try_
    GradNormBalancer(model, shared=[model.shared]).observe(hidden)


def test_initial_weights_are_scaled_to_the_number_of_tasks_and_weigh_the_loss() -> None:
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
def test_settings_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    defaults = {"alpha": 1.5, "learning_rate": 0.1, "least_weight": 0.01}
    chosen = {**defaults, **options}
    with pytest.raises(UsageError, match=message):
        GradNormBalancer(
            Slopes(), alpha=chosen["alpha"], learning_rate=chosen["learning_rate"], least_weight=chosen["least_weight"]
        )


def test_other_settings_that_make_no_sense_are_refused_too() -> None:
    model = Slopes()
    with pytest.raises(UsageError, match="interval = 0"):
        GradNormBalancer(model, interval=0)
    with pytest.raises(UsageError, match="initial weight of 'a' is 0"):
        GradNormBalancer(model, initial_weights={"a": 0.0})
    with pytest.raises(UsageError, match="initial loss of 'a' is nan"):
        GradNormBalancer(model, initial_losses={"a": math.nan})
    with pytest.raises(UsageError, match="requires a gradient"):
        GradNormBalancer(model, shared=[])


def test_a_step_that_nobody_observed_and_a_batch_of_no_task_are_mistakes() -> None:
    balancer = GradNormBalancer(Slopes())
    with pytest.raises(UsageError, match="after_step without"):
        balancer.after_step()
    with pytest.raises(UserCodeError, match="no task loss"):
        balancer.loss({})
