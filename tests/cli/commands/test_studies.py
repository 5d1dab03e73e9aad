"""From a config, or whatever names a study, to the study."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from batchcal.cli.commands.studies import SHAPE_S, names_a_study, prepare_study, read
from batchcal.cli.output.messages import Messages
from batchcal.hpo.storage.backend import open_storage

CONFIG = """
[task]
spec = "train.py:task"
[train]
epochs = 3
{more}
[hpo]
study = "first"
[hpo.space]
width = {{ kind = "int", low = 1, high = 8 }}
batch_size = {{ kind = "categorical", choices = [16, 256, 64] }}
"""


def test_a_journal_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "studies.log"
    optuna.create_study(study_name="first", storage=open_storage(path))
    assert names_a_study(str(path))
    calibration = tmp_path / "calibration.json"
    calibration.write_text(json.dumps({"kind": "calibration"}), encoding="utf-8")
    assert not names_a_study(str(calibration))
    assert not names_a_study(str(tmp_path / "gone.json"))
    assert not names_a_study(None)
    assert names_a_study("sqlite:///studies.db")


@pytest.mark.parametrize(("more", "seconds"), [("", SHAPE_S), ('[calibrate]\ntime_limit = "25s"', 25.0)])
def test_a_shape_has_a_short_time_limit_unless_the_config_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, seconds: float
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(CONFIG.format(more=more), encoding="utf-8")
    (tmp_path / "train.py").write_text("def task(): ...\n", encoding="utf-8")
    found = prepare_study("study.toml", read("study.toml"), Messages())
    assert found.options.time_limit_s == seconds
    assert found.blueprint.most_trained == 256, "no trial trains with more at once"
    assert found.blueprint.resource == 3
