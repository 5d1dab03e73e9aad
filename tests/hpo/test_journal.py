"""A journal whose last line was cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from batchcal.core.errors import UsageError
from batchcal.hpo.journal import mend
from batchcal.hpo.storage import open_storage
from batchcal.hpo.study import open_study
from tests.hpo.test_shares import a_blueprint

LINE = b'{"op_code":0,"study_name":"first"}\n'


def test_what_a_full_disk_left_of_a_line_costs_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="first", storage=open_storage(path))
    study.add_trial(optuna.create_trial(value=1.0))
    with path.open("ab") as file:
        file.write(b'{"op_code":5,"worker')
    again = optuna.load_study(study_name="first", storage=open_storage(path))
    again.add_trial(optuna.create_trial(value=2.0))
    seen = optuna.load_study(study_name="first", storage=open_storage(path))
    assert [one.value for one in seen.get_trials()] == [1.0, 2.0]
    for line in path.read_bytes().splitlines():
        json.loads(line)
    study.add_trial(optuna.create_trial(value=3.0))
    assert len(seen.get_trials()) == 3, "who had it open goes on, too"


@pytest.mark.parametrize(
    ("held", "left"),
    [(b"", b""), (LINE, LINE), (LINE + b"b", LINE), (LINE[:6], b""), (LINE[:-1], b""), (LINE + b"x" * 200_000, LINE)],
)
def test_only_what_has_no_end_is_cut_off(tmp_path: Path, held: bytes, left: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(held)
    mend(path)
    assert path.read_bytes() == left


def test_what_is_no_journal_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be kept", encoding="utf-8")
    with pytest.raises(UsageError, match="the storage of study 'first' cannot be used"):
        open_study(a_blueprint(storage=str(path)))
    assert path.read_text(encoding="utf-8") == "to be kept"
