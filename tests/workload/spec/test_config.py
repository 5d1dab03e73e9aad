"""A TOML config is read whole or refused with the place and what to write instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.workload.spec.config import Config, project_config, read_config

ROOT = Path(__file__).resolve().parents[3]


def read(directory: Path, text: str | bytes) -> Config:
    path = directory / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(path, directory=directory)


def test_arguments_keep_their_types(tmp_path: Path) -> None:
    config = read(tmp_path, '[task]\nspec = "m:t"\n[task.args]\na = 1\nb = 0.5\nc = true\nd = "x"\n')
    assert config.reference is not None
    assert config.reference.arguments == {"a": 1, "b": 0.5, "c": True, "d": "x"}
    assert [type(value) for value in config.reference.arguments.values()] == [int, float, bool, str]


def test_settings_tables_of_a_config_are_returned_unchanged(tmp_path: Path) -> None:
    config = read(tmp_path, '[calibrate]\nmargin = "15%"\n[plan]\neffective_batch = 512\n[train]\nnew = [1, 2]\n')
    assert config.reference is None
    assert config.tables == {"calibrate": {"margin": "15%"}, "plan": {"effective_batch": 512}, "train": {"new": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "what", "try_"),
    [
        ('[task]\nspce = "m:t"', r"unknown key 'spce' in \[task\] \(did you mean spec\?\)", "spec instead of spce"),
        ('[task]\nspec = "m:t"\nwidth = 3', "unknown key 'width'", "remove width"),
        (
            '[task]\nspec = "m:t"\n[calibarte]\nmargin = 1',
            r"unknown table \[calibarte\] \(did you mean calibrate\?\)",
            "calibrate",
        ),
        ('spec = "m:t"', "unknown key 'spec' outside of any table", "remove spec"),
        ("task = 3", "task is not a table", "[task]"),
        ("plan = 3", "plan is not a table", "[plan]"),
        ("[task]", r"\[task\] has no spec", "spec ="),
        ("[task]\nspec = 3", "spec is 3, not a string", "spec ="),
        ('[task]\nspec = "train"', "'train' has no colon", "spec ="),
        ('[task]\nspec = "m:t"\nargs = 3', "args of .* is not a table", "[task.args]"),
        ('[task]\nspec = "m:t"\n[task.args]\nsizes = [1, 2]', "sizes in .* is of type list", "sizes ="),
        ('[task]\nspec = "m:t"\n[task.args]\nsince = 2026-01-01', "since in .* is of type date", "since ="),
        ('[task]\nspec = "m:t"\n[task.args]\nrate = nan', "rate in .* is not finite", "rate ="),
        ("[task\n", "is not TOML.*line 1", "strings need quotes"),
        ("[task]\nspec = train.py:task", "is not TOML.*line 2", "strings need quotes"),
        (b"\xff\xfe[task]", "is not UTF-8", "UTF-8"),
        ("#" + " " * (1 << 20), "is over 1 MiB", "path"),
        ("a = " + "[" * 5000, "is not TOML", "quotes"),
    ],
)
def test_an_invalid_config_is_rejected_with_the_reason(tmp_path: Path, text: str | bytes, what: str, try_: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        read(tmp_path, text)
    assert "config.toml" in caught.value.what
    assert caught.value.known
    assert try_ in caught.value.try_


def test_a_config_that_is_not_a_regular_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        read_config(tmp_path, directory=tmp_path)
    with pytest.raises(UsageError, match="there is no file"):
        read_config(tmp_path / "gone" / "x.toml", directory=tmp_path)
    os.mkfifo(tmp_path / "fifo.toml")
    with pytest.raises(UsageError, match="is not a regular file"):
        read_config(tmp_path / "fifo.toml", directory=tmp_path)


def test_a_spec_can_name_a_file_next_to_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "train.py").write_text("")
    (folder / "config.toml").write_text('[task]\nspec = "train.py:task"\n')
    reference = read_config(folder / "config.toml", directory=tmp_path).reference
    assert reference is not None
    assert (reference.spec, reference.config) == ("experiment/train.py:task", "experiment/config.toml")
    (tmp_path / "train.py").write_text("")  # the one in the project goes first
    reference = read_config(folder / "config.toml", directory=tmp_path).reference
    assert reference is not None
    assert reference.spec == "train.py:task"


def test_a_config_outside_the_project_has_an_absolute_path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    project = tmp_path_factory.mktemp("project")
    (tmp_path / "c.toml").write_text('[task]\nspec = "m:t"\n')
    reference = read_config(tmp_path / "c.toml", directory=project).reference
    assert reference is not None
    assert reference.config == (tmp_path / "c.toml").as_posix()


def test_the_project_config_can_set_the_task(tmp_path: Path) -> None:
    assert project_config(tmp_path) is None
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[project]\nname = 'x'\n")
    assert project_config(tmp_path) is None
    pyproject.write_text("[tool.batchcal]\ntask.spec = 'a:t'\n[tool.other]\nx = 1\n")
    config = project_config(tmp_path)
    assert config is not None
    assert config.reference is not None
    assert config.reference.spec == "a:t"
    (tmp_path / "batchcal.toml").write_text("[task]\nspec = 'b:t'\n")  # goes first
    config = project_config(tmp_path)
    assert config is not None
    assert config.reference is not None
    assert config.reference.spec == "b:t"


def test_a_project_config_that_is_not_a_table_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nbatchcal = 3\n")
    with pytest.raises(UsageError, match="not a table"):
        project_config(tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_config_that_ships_names_a_task(path: Path) -> None:
    reference = read_config(path, directory=ROOT).reference
    assert reference is not None
    assert reference.spec == f"batchcal.workload.examples.{path.stem}:task"
