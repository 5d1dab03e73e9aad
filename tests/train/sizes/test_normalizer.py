"""One meaning for every optimizer step: shares within it, and the learning rate for one step and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from batchcal.core.errors import UsageError
from batchcal.train.sizes.normalizer import EffectiveBatchSizeNormalizer
from batchcal.values.settings import LearningRateRule


def model_of() -> nn.Module:
    torch.manual_seed(2)
    return nn.Linear(4, 1)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 0.25), ("sqrt", 0.5)])
def test_the_learning_rate_factor_follows_the_rule(rule: LearningRateRule, factor: float) -> None:
    normalizer = EffectiveBatchSizeNormalizer(reference=128, rule=rule)
    assert normalizer.factor(32) == factor
    assert normalizer.factor(128) == 1.0
    assert normalizer.log(32) == {"lr_rule": rule, "lr_reference_batch": 128, "lr_factor": factor}
    assert normalizer.description()


def test_the_linear_rule_halves_the_update_for_half_the_samples() -> None:
    full, half = model_of(), model_of()
    normalizer = EffectiveBatchSizeNormalizer(reference=8, rule="linear")
    inputs = torch.ones(1, 4)
    begin = next(model_of().parameters()).detach()
    moved: list[Tensor] = []
    for model, samples in ((full, 8), (half, 4)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(inputs).sum().backward()
        with normalizer.applied(optimizer, samples):
            optimizer.step()
        moved.append(next(model.parameters()).detach() - begin)
    torch.testing.assert_close(moved[1], moved[0] / 2)


def test_learning_rates_are_restored_exactly_after_every_step() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 0.003}])
    normalizer = EffectiveBatchSizeNormalizer(reference=7, rule="sqrt")
    for samples in range(1, 200):
        with normalizer.applied(optimizer, samples) as factor:
            assert rates(optimizer) == [0.1 * factor, 0.003 * factor]
        assert rates(optimizer) == [0.1, 0.003]


def test_scaling_does_not_affect_learning_rate_schedulers() -> None:
    plain, scaled = (torch.optim.SGD(model_of().parameters(), lr=0.1) for _ in range(2))
    schedulers = [ExponentialLR(optimizer, gamma=0.9) for optimizer in (plain, scaled)]
    normalizer = EffectiveBatchSizeNormalizer(reference=64, rule="linear")
    for samples in (64, 20, 50, 3):
        plain.step()
        with normalizer.applied(scaled, samples):
            scaled.step()
        for scheduler in schedulers:
            scheduler.step()
        assert rates(scaled) == rates(plain)


def test_a_scheduler_step_inside_the_block_is_rejected() -> None:
    optimizer = torch.optim.SGD(model_of().parameters(), lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    with (
        pytest.raises(UsageError, match="changed while it was scaled") as caught,
        EffectiveBatchSizeNormalizer(4, "linear").applied(optimizer, 2),
    ):
        optimizer.step()
        scheduler.step()
    assert "after the block" in caught.value.try_
    assert rates(optimizer) == [0.1]


def test_a_failed_step_restores_the_learning_rates() -> None:
    optimizer = torch.optim.SGD(model_of().parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), EffectiveBatchSizeNormalizer(4, "linear").applied(optimizer, 1):
        raise ZeroDivisionError
    assert rates(optimizer) == [0.1]


def test_a_tensor_learning_rate_stays_the_same_tensor() -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(model_of().parameters(), lr=rate)
    with EffectiveBatchSizeNormalizer(4, "linear").applied(optimizer, 2):
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.1).item()


def test_scaling_the_learning_rate_keeps_the_optimizer_state_unchanged() -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    before = deepcopy(optimizer.state_dict())
    with EffectiveBatchSizeNormalizer(4, "sqrt").applied(optimizer, 2):
        pass
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


@pytest.mark.parametrize(("weight", "total"), [(-1.0, 4.0), (5.0, 4.0), (0.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_an_invalid_loss_share_is_rejected(weight: float, total: float) -> None:
    with pytest.raises(UsageError, match="is not part of"):
        EffectiveBatchSizeNormalizer(4).loss_scale(weight, total)


def test_empty_batches_and_unknown_rules_are_rejected() -> None:
    with pytest.raises(UsageError, match="reference = 0"):
        EffectiveBatchSizeNormalizer(0)
    with pytest.raises(UsageError, match="must be positive and finite"):
        EffectiveBatchSizeNormalizer(4).factor(0)
    make: Callable[..., EffectiveBatchSizeNormalizer] = EffectiveBatchSizeNormalizer  # as from a file, past the type checker
    with pytest.raises(UsageError, match="no rule 'cubic'"):
        make(4, "cubic")
