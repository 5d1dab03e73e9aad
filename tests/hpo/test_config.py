"""What a config says of a study, what the command line changes in it, and the family of studies that it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from batchcal.core.errors import UsageError
from batchcal.hpo.config import as_toml, study_of, with_changes
from batchcal.hpo.search.matrix import members
from batchcal.hpo.search.space import largest
from batchcal.workload.spec.config import Config, read_config

TEXT = """
[task]
spec = "train.py:task"
[task.args]
horizon = 24
[hpo]
study = "patchtst"
trials = 60
budget = "2M"
pruner = "median"
[hpo.space]
n_layers = { kind = "int", low = 1, high = 8 }
epochs = { kind = "categorical", choices = [9, 27] }
"""


def a_config(tmp_path: Path, text: str = TEXT) -> Config:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, directory=tmp_path)


def test_a_study_is_read_with_its_defaults(tmp_path: Path) -> None:
    settings, space = study_of(a_config(tmp_path), "study.toml")
    assert (settings.study, settings.trials, settings.budget, settings.pruner.name) == ("patchtst", 60, 2_000_000, "median")
    assert (settings.metric, settings.direction, settings.folds, settings.storage) == ("loss", "minimize", 0, None)
    assert sorted(space) == ["epochs", "n_layers"]
    assert largest(space, "epochs", default=3) == 27


def test_set_changes_study_keys_and_task_arguments(tmp_path: Path) -> None:
    changed = with_changes(a_config(tmp_path), ["budget=2B", "horizon=5", "data=ETTh1.csv", "trials=3"])
    settings, _ = study_of(changed, "study.toml")
    assert (settings.budget, settings.trials) == (2_000_000_000, 3)
    assert changed.reference is not None
    assert changed.reference.arguments == {"horizon": 5, "data": "ETTh1.csv"}


def test_a_matrix_of_4_by_3_values_creates_12_named_studies(tmp_path: Path) -> None:
    family = members(a_config(tmp_path), ["budget=2M,20M,200M,2B", "horizon=5,10,20"])
    read = [study_of(member, "study.toml")[0] for member in family]
    assert len({settings.study for settings in read}) == 12
    assert read[0].study == "patchtst-budget=2M-horizon=5"
    assert [settings.budget for settings in read[::3]] == [2 * 10**6, 2 * 10**7, 2 * 10**8, 2 * 10**9]
    assert [member.reference.arguments["horizon"] for member in family[:3] if member.reference] == [5, 10, 20]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trial = 3", "unknown key 'trial' in [hpo] (did you mean trials?)"),
        ("folds = 1", "folds = 1 leaves no data for training"),
        ("trials = 0", "trials"),
        ('direction = "up"', "direction"),
        ('pruner = "best"', r"pruner 'best' is not valid"),
        ('budget = "many"', "budget 'many' is not a count"),
        ('study = "a/b"', "study 'a/b' is not a valid name"),
    ],
)
def test_an_invalid_study_setting_is_reported(tmp_path: Path, line: str, said: str) -> None:
    key = line.partition(" ")[0]
    kept = "\n".join(row for row in TEXT.splitlines() if not row.startswith(f"{key} ="))
    with pytest.raises(UsageError) as raised:
        study_of(a_config(tmp_path, kept.replace("[hpo]", f"[hpo]\n{line}")), "study.toml")
    assert said in raised.value.what


def test_a_config_without_a_study_table_or_name_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"study.toml has no table \[hpo\]"):
        study_of(a_config(tmp_path, TEXT.partition("[hpo]")[0]), "study.toml")
    with pytest.raises(UsageError, match="study: is missing"):
        study_of(a_config(tmp_path, TEXT.replace('study = "patchtst"\n', "")), "study.toml")


@pytest.mark.parametrize("change", ["budget", "=3", "space=3", "a b=3"])
def test_an_invalid_set_option_is_rejected(tmp_path: Path, change: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        with_changes(a_config(tmp_path), [change])


@pytest.mark.parametrize("axes", [["budget="], ["budget"], ["horizon=1,,2"], ["horizon=1", "horizon=2"]])
def test_an_invalid_matrix_axis_is_rejected(tmp_path: Path, axes: list[str]) -> None:
    with pytest.raises(UsageError, match="--matrix"):
        members(a_config(tmp_path), axes)


def test_a_matrix_with_too_many_studies_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1100 studies"):
        members(a_config(tmp_path), [f"a={','.join(map(str, range(100)))}", f"b={','.join(map(str, range(11)))}"])


def test_set_changes_training_settings_in_their_table(tmp_path: Path) -> None:
    changed = with_changes(a_config(tmp_path), ["epochs=5", "device=cpu", "effective_batch=64"])
    assert changed.tables["train"] == {"epochs": 5}
    assert changed.tables["calibrate"] == {"device": "cpu"}
    assert changed.tables["plan"] == {"effective_batch": 64}
    assert changed.reference is not None
    assert changed.reference.arguments == {"horizon": 24}


def test_a_task_argument_without_a_task_is_rejected(tmp_path: Path) -> None:
    config = a_config(tmp_path, TEXT[TEXT.index("[hpo]") :])
    with pytest.raises(UsageError, match="has no"):
        with_changes(config, ["horizon=5"])


def test_a_study_of_a_matrix_survives_a_toml_round_trip(tmp_path: Path) -> None:
    (member,) = members(a_config(tmp_path), ["horizon=5"])
    path = tmp_path / "member.toml"
    path.write_text(tomli_w.dumps(as_toml(member)), encoding="utf-8")
    again = read_config(path, directory=tmp_path)
    assert study_of(again, "member.toml") == study_of(member, "study.toml")
    assert again.reference is not None
    assert again.reference.arguments == {"horizon": 5}


def test_set_accepts_dotted_pruner_keys(tmp_path: Path) -> None:
    changed = with_changes(a_config(tmp_path), ["pruner.name=hyperband", "pruner.patience=5"])
    settings, _ = study_of(changed, "study.toml")
    assert (settings.pruner.name, settings.pruner.patience) == ("hyperband", 5)


def test_a_key_that_the_pruner_does_not_use_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the pruner median does not use patience"):
        study_of(with_changes(a_config(tmp_path), ["pruner.patience=5"]), "study.toml")
