"""Templates of commands: placeholders, variables before the program, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.calibration.locate import task_file
from batchcal.core.errors import UsageError
from batchcal.workload.command.identity import command_reference
from batchcal.workload.command.template import HIDDEN, Template, template_of
from batchcal.workload.identity import identity_of

VALUES = {"batch_size": "32", "accumulation_steps": "4"}


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{batch_size}", "32"),
        ("--bs={batch_size}", "--bs=32"),
        ("{{batch_size}}", "{batch_size}"),
        ("ckpt-{epoch}-{step}", "ckpt-{epoch}-{step}"),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{num_workers}", "{num_workers}"),
    ],
)
def test_only_known_placeholders_with_a_value_are_replaced(word: str, filled: str) -> None:
    assert Template(words=("train", word)).filled(VALUES).words == ("train", filled)


def test_variables_before_the_program_are_its_environment() -> None:
    template = template_of(["BS={batch_size}", "A=1", "python", "train.py"]).filled(VALUES)
    assert template.argv == ("python", "train.py")
    assert template.variables() == {"BS": "32", "A": "1"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "no command follows --"),
        (["A=1"], "no command follows --"),
        (["python", "t.py", "{batchsize}"], r"did you mean \{batch_size\}"),
        (["python3.11", "-I", "t.py"], "-I cannot be observed"),
        (["/usr/bin/python", "-uE", "t.py"], "-uE cannot be observed"),
    ],
)
def test_commands_that_cannot_be_measured_are_rejected_before_they_start(words: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        template_of(words)


def test_options_of_the_script_are_not_options_of_python() -> None:
    assert template_of(["python", "-u", "t.py", "-I", "-E"]).argv[-1] == "-E"
    assert template_of(["python", "-m", "pkg", "-S"]).argv[0] == "python"
    assert template_of(["python", "-Wignore::ImportWarning", "t.py"]).argv[2] == "t.py"
    assert template_of(["python", "-I", "t.py"], is_measured=False).argv[1] == "-I"


def test_secrets_are_hidden_and_do_not_change_the_identity(tmp_path: Path) -> None:
    words = ["API_KEY=one", "python", "t.py", "--hub-token", "two", "--password=three", "https://me:four@host/x"]
    template = template_of(words)
    assert template.masked == (
        f"API_KEY={HIDDEN}", "python", "t.py", "--hub-token", HIDDEN, f"--password={HIDDEN}", f"https://{HIDDEN}@host/x",
    )  # fmt: skip
    reference = command_reference(template, tmp_path)
    other = command_reference(template_of([*words[:4], "other", *words[5:]]), tmp_path)
    assert "two" not in reference.spec
    assert identity_of(reference).digest == identity_of(other).digest


def test_values_that_change_the_training_are_not_taken_for_secrets(tmp_path: Path) -> None:
    words = ("python", "t.py", "--max-tokens", "1024", "--tokenizer=gpt2", "--num-key-value-heads", "8", "--text-key", "text")
    assert template_of(words).masked == words
    assert template_of(["t", "--token", "{batch_size}"]).masked[-1] == "{batch_size}"


def test_a_command_is_stale_if_its_sources_or_its_config_change(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    (tmp_path / "run.yaml").write_text("lr: 1\n")
    (tmp_path / "base.py").write_text("width = 1\n")
    config = command_reference(template_of(["python", "train.py", "--config=base.py"]), tmp_path)
    assert "base.py" in identity_of(config).sources
    reference = command_reference(template_of(["python", "train.py", "--config=run.yaml", "{batch_size}"]), tmp_path)
    first = identity_of(reference)
    assert set(first.sources) == {"train.py", "helper.py", "run.yaml"}
    (tmp_path / "helper.py").write_text("x = 1  # a comment\n")
    assert identity_of(reference).digest == first.digest
    (tmp_path / "helper.py").write_text("x = 2\n")
    changed = identity_of(reference).digest
    (tmp_path / "run.yaml").write_text("lr: 2\n")
    assert len({first.digest, changed, identity_of(reference).digest}) == 3


def test_each_command_has_its_own_file_named_after_its_script(tmp_path: Path) -> None:
    def file(*words: str) -> str:
        return task_file(command_reference(template_of(words), tmp_path))

    assert file("python", "train.py", "{batch_size}").startswith("train-")
    assert file("python", "-m", "pkg.main", "{batch_size}").startswith("main-")
    assert file("torchrun", "--nproc-per-node", "2", "x/ddp.py").startswith("ddp-")
    assert file("python", "train.py", "--a") != file("python", "train.py", "--b")


def test_the_text_of_a_command_can_be_typed() -> None:
    assert template_of(["python", "my train.py", "{batch_size}", "{a,b}"]).text == "python 'my train.py' {batch_size} '{a,b}'"
