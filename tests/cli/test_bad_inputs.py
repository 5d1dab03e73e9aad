"""The golden file of bad inputs, and the commands that messages propose: they parse."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

import batchcal
from batchcal.__main__ import main
from batchcal.cli.app import VERBS, app_with, without_command
from tests.cli.bad_inputs import CASES, GOLDEN, HEAD, Case, in_folder, prepare, run, section

PACKAGE = Path(batchcal.__file__).parent
FAST = [position for position, case in enumerate(CASES) if not case.child]
CHILD = [position for position, case in enumerate(CASES) if case.child]
_SECTION = re.compile(r"^\$ .*?(?=^\$ |\Z)", re.MULTILINE | re.DOTALL)
_EXPLAINED = re.compile(r" {3,}|; |, |\n")
"""What follows a proposed command in its line."""
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@cache
def golden() -> tuple[str, ...]:
    return tuple(_SECTION.findall(GOLDEN.read_text(encoding="utf-8")))


def name_of(position: int) -> str:
    return f"{position}-{CASES[position].command.replace(' ', '_')}"


def test_the_golden_file_contains_exactly_the_cases() -> None:
    assert GOLDEN.read_text(encoding="utf-8").startswith(HEAD)
    assert len(golden()) == len(CASES) >= 60


@pytest.mark.parametrize("position", FAST, ids=name_of)
def test_the_error_for_a_bad_input_matches_the_golden_file(position: int, tmp_path: Path) -> None:
    case = CASES[position]
    assert section(case, *run(case, tmp_path)) == golden()[position]


@pytest.mark.child
@pytest.mark.parametrize("position", CHILD, ids=name_of)
def test_the_error_for_a_bad_input_in_a_child_matches_the_golden_file(position: int, tmp_path: Path) -> None:
    case = CASES[position]
    assert section(case, *run(case, tmp_path)) == golden()[position]


@pytest.mark.child
def test_no_progress_is_printed_before_a_usage_error_in_a_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("calibrate task.py:tsk")
    prepare(case, tmp_path)
    with in_folder(tmp_path, {}):
        assert main(case.command.split()) == 2
    assert capsys.readouterr().err.startswith("error: task.py has no function tsk")


@pytest.mark.parametrize("position", range(len(CASES)), ids=name_of)
def test_every_error_suggests_the_next_command(position: int) -> None:
    text = golden()[position]
    assert "  try: " in text or '"try": "' in text
    code = int(re.findall(r"^exit (\d+)$", text, re.MULTILINE)[0])
    assert code in {2, 3, 4, 5}
    assert "Traceback" not in text or code == 5
    answer = text.partition(f"exit {code}\n")[2]
    assert answer.startswith(("error: ", "{")), "no line comes before the error"


def tries() -> Iterator[tuple[str, str]]:
    """(where, text) of everything that a message proposes, with `1` for what is filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "try_":
                yield from ((f"{path.relative_to(PACKAGE)}:{node.value.lineno}", text) for text in texts(node.value))
    for text in golden():
        _, _, tail = text.rpartition("  try: ")
        yield text.partition("\n")[0], "\n".join(line.strip() for line in tail.splitlines())


def texts(node: ast.expr) -> list[str]:
    """The values of an expression of texts, as far as its source has them."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return [
                "".join(part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "1" for part in parts)
            ]
        case ast.IfExp(body=first, orelse=second):
            return [*texts(first), *texts(second)]
        case ast.BoolOp(values=values):
            return [text for value in values for text in texts(value)]
        case ast.BinOp(left=left, right=right):
            return [first + second for first in texts(left) or ["1"] for second in texts(right) or ["1"]]
    return []


def commands_in(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("batchcal "):
            yield _EXPLAINED.split(line)[0]


def all_flags() -> set[str]:
    found = {"--help", "--version"}

    def below(command: object) -> None:
        for parameter in getattr(command, "params", ()):
            found.update(parameter.opts, parameter.secondary_opts)
        children: object = getattr(command, "commands", {})
        assert isinstance(children, dict)
        for child in children.values():
            below(child)

    below(typer.main.get_command(app_with(*VERBS)))
    return found


def parse(command: str) -> None:
    """Raises what Typer raises for a command line that it does not know."""
    group: object = typer.main.get_command(app_with(*VERBS))
    words, _ = without_command(shlex.split(command)[1:])
    while isinstance(group, TyperGroup):
        assert words, command
        if words[0] in ("--help", "--version"):
            return
        group = group.commands[words.pop(0)]
    assert isinstance(group, typer.core.TyperCommand)
    if "--help" not in words:
        group.make_context("batchcal", words)


def test_every_suggested_command_parses() -> None:
    proposed = {(where, command) for where, text in tries() for command in commands_in(text)}
    assert len(proposed) > 30
    wrong = []
    for where, command in sorted(proposed):
        try:
            parse(command)
        except Exception as error:  # noqa: BLE001 - collected: reported together at the end
            wrong.append(f"{where}: {command}: {error!r}")
    assert not wrong, "\n".join(wrong)


def test_every_suggested_flag_exists() -> None:
    # Of pip, of wsl, of docker.
    others = {"--upgrade", "--install", "--memory", "--memory-swap", "--shm-size", "--ulimit", "--pids-limit"}
    flags = all_flags() | others
    wrong = [
        f"{where}: {flag}" for where, text in tries() for flag in _FLAG.findall(text.partition(" -- ")[0]) if flag not in flags
    ]
    assert not wrong, "\n".join(wrong)


def test_a_case_ignores_settings_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAL_MARGIN", "nonsense")
    code, text = run(Case("show"), tmp_path)
    assert code == 3
    assert "no calibration" in text
