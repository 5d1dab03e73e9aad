"""What a study searches over, and what of it goes where."""

from __future__ import annotations

import optuna
import pytest

from batchcal.core.errors import UsageError
from batchcal.hpo.search.space import arguments_of, read_space, sample, shape_of

PLACE = "x.toml [hpo.space]"


def test_each_kind_maps_to_its_optuna_distribution() -> None:
    space = read_space(
        {
            "dropout": {"kind": "uniform", "low": 0.1, "high": 0.3},
            "learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
            "n_layers": {"kind": "int", "low": 1, "high": 8},
            "d_model": {"kind": "categorical", "choices": [64, 128]},
        },
        PLACE,
    )
    trial = optuna.create_study().ask()
    values = sample(space, trial)
    assert values == trial.params
    told = {name: str(distribution) for name, distribution in trial.distributions.items()}
    assert told == {
        "dropout": "FloatDistribution(high=0.3, log=False, low=0.1, step=None)",
        "learning_rate": "FloatDistribution(high=0.01, log=True, low=0.0001, step=None)",
        "n_layers": "IntDistribution(high=8, log=False, low=1, step=1)",
        "d_model": "CategoricalDistribution(choices=(64, 128))",
    }


def test_the_shape_consists_of_integer_and_categorical_task_arguments() -> None:
    space = read_space(
        {
            "dropout": {"kind": "uniform", "low": 0.0, "high": 0.3},
            "n_layers": {"kind": "int", "low": 1, "high": 8},
            "seed": {"kind": "int", "low": 0, "high": 9, "shape": False},
            "width": {"kind": "uniform", "low": 1.0, "high": 2.0, "shape": True},
            "batch_size": {"kind": "categorical", "choices": [16, 32]},
            "epochs": {"kind": "int", "low": 1, "high": 9},
        },
        PLACE,
    )
    values = {"dropout": 0.2, "n_layers": 3, "seed": 4, "width": 1.5, "batch_size": 32, "epochs": 5}
    assert shape_of(space, values) == {"n_layers": 3, "width": 1.5}
    assert arguments_of(values) == {"dropout": 0.2, "n_layers": 3, "seed": 4, "width": 1.5}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "nothing to search over"),
        ("all", "nothing to search over"),
        ({"x": {"kind": "normal", "low": 0, "high": 1}}, "x is of an unknown kind 'normal'"),
        ({"x": {"low": 0, "high": 1}}, "x has no kind"),
        ({"x": 3}, "x is 3, not a table with a kind"),
        ({"x": {"kind": "uniform", "low": 1.0, "high": 0.5}}, "x: low 1 is above high 0.5"),
        ({"x": {"kind": "log_uniform", "low": 0.0, "high": 0.5}}, "x: low"),
        ({"x": {"kind": "uniform", "low": float("nan"), "high": 0.5}}, "x: low"),
        ({"x": {"kind": "int", "low": 0, "high": 8, "log": True}}, "x: log = true needs low >= 1"),
        ({"x": {"kind": "int", "low": 0, "high": 8, "most": 3}}, "x: most is unknown"),
        ({"x": {"kind": "categorical"}}, "x: choices is missing"),
        ({"x": {"kind": "categorical", "choices": []}}, "x: choices"),
        ({"x": {"kind": "categorical", "choices": [1, 1]}}, "x: a choice occurs twice"),
        ({"batch_size": {"kind": "uniform", "low": 8, "high": 64}}, "batch_size has values that are not valid counts"),
        ({"batch_size": {"kind": "categorical", "choices": [0, 64]}}, "batch_size has values that are not valid counts"),
        ({"epochs": {"kind": "categorical", "choices": [True, 2]}}, "epochs has values that are not valid counts"),
    ],
)
def test_an_invalid_search_parameter_is_named_in_the_error(table: object, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_space(table, PLACE)
    assert raised.value.what.startswith(PLACE)
    assert said in raised.value.what


def test_all_errors_of_a_search_space_are_reported_together() -> None:
    with pytest.raises(UsageError, match=r"x has no kind; y: low 2 is above high 1"):
        read_space({"x": {}, "y": {"kind": "int", "low": 2, "high": 1}}, PLACE)


def test_true_and_1_are_different_choices() -> None:
    assert read_space({"x": {"kind": "categorical", "choices": [True, 1, 1.0]}}, PLACE)
