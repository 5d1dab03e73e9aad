"""What a user types becomes a TaskReference, or an error that says what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.workload.spec.reference import Scalar, parse_arguments
from batchcal.workload.spec.target import reference_of


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("def helper(): ...\ndef make_task(): ...\ndef _private(): ...\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text("")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "one.toml").write_text('[task]\nspec = "train.py:make_task"\n[task.args]\nwidth = 8\n')
    (tmp_path / "settings.toml").write_text("[plan]\nobjective = 'memory'\n")
    return tmp_path


@pytest.mark.parametrize("target", ["train.py:make_task", "package.module:factory", "models/net.py:Builder.make", "m:t"])
def test_a_spec_is_kept_as_given(project: Path, target: str) -> None:
    reference = reference_of(target, directory=project)
    assert (reference.spec, reference.directory, reference.arguments) == (target, str(project), {})


def test_a_config_names_the_task_and_its_arguments(project: Path) -> None:
    reference = reference_of("configs/one.toml", directory=project)
    assert (reference.spec, reference.arguments, reference.config) == ("train.py:make_task", {"width": 8}, "configs/one.toml")


def test_an_absolute_path_works(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    target = f"{project}/train.py:make_task"
    assert reference_of(target, directory=elsewhere).spec == target


@pytest.mark.parametrize(
    ("target", "what", "try_"),
    [
        ("", "the name of the task is empty", "train.py:task"),
        ("  ", "the name of the task is empty", "train.py:task"),
        ("train.py", "the name of the function in it", "train.py:make_task"),
        ("broken.py", "the name of the function in it", "broken.py:task"),
        ("package.module", "does not name a function", "package.module:task"),
        ("notes.txt", "neither a TOML file nor a Python file", "train.py:task"),
        ("configs", "is a folder", "calibrate configs/one.toml"),
        ("models", "is a folder", "calibrate models/net.py:task"),
        ("models/:task", "is a folder", "models/train.py:task"),
        ("trian.py:make_task", "there is no file trian.py", "calibrate train.py:make_task"),
        ("models/net:task", "there is no file models/net", "calibrate models/net.py:task"),
        ("gone/net.py:task", "there is no file gone/net.py", "path/to/file.py:task"),
        ("train.py:", "has no name after the colon", "train.py:task"),
        (":task", "has no module or file before the colon", "train.py:task"),
        ("train.py:make_task()", "is not the name of a function", "train.py:make_task"),
        ("train.py:__init__", "a special name of Python", "train.py:task"),
        ("train:Net.__class__", "a special name of Python", "train:task"),
        (".sibling:task", "neither a module nor a file", "sibling.py:task"),
        ("my-train:task", "neither a module nor a file", "my-train.py:task"),
        ("train.py\n:task", "cannot be printed", "train.py:task"),
        ("tr\0ain.py", "cannot be printed", "train.py:task"),
        ("tr\0ain.toml", "cannot be printed", "train.py:task"),
        ("configs/on.toml", "there is no file .*configs/on.toml", "one.toml"),
        ("nowhere/on.toml", "there is no file .*nowhere/on.toml", "a new file on.toml with"),
        ("settings.toml", "has no table", "spec = "),
    ],
)
def test_a_malformed_target_is_an_error_with_reason_and_suggestion(project: Path, target: str, what: str, try_: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        reference_of(target, directory=project)
    assert caught.value.known
    assert try_ in caught.value.try_


def test_the_error_for_a_file_without_a_function_lists_its_functions(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        reference_of("train.py", directory=project)
    assert caught.value.known == "functions in it: helper, make_task"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("d_model=1024,n_layers=256", {"d_model": 1024, "n_layers": 256}),
        ("dropout=0.1, name=big ,flag=true,other=false", {"dropout": 0.1, "name": "big", "flag": True, "other": False}),
        ("path=a/b.csv", {"path": "a/b.csv"}),
    ],
)
def test_command_line_arguments_are_parsed_like_config_values(text: str, arguments: dict[str, Scalar]) -> None:
    assert parse_arguments(text, name="shape") == arguments


@pytest.mark.parametrize("text", ["", "d_model", "=3", "d model=3", "a=1,,b=2", "a=", "a=1,a=2"])
def test_a_malformed_argument_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(text, name="shape")
    assert "--shape" in caught.value.try_
