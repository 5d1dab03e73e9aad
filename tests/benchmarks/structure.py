"""Size and repetition of the code at a commit: lines, classes, files, and the places where one setting is written down.

    python -m tests.benchmarks.structure HEAD~100 HEAD
    python -m tests.benchmarks.structure --settings margin,patience HEAD

A place of a setting is a line that spells its name: as an attribute, a parameter, a keyword, a key in quotes or a constant in
capitals. Help texts, comments and docstrings do not count.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.benchmarks._report import finish

ROOT: Final = Path(__file__).resolve().parents[2]
SETTINGS: Final = ("margin", "max_batch", "patience", "warmup", "checkpoint_every")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", default=["HEAD"])
    parser.add_argument("--settings", default=",".join(SETTINGS))
    arguments = parser.parse_args()
    rows = [{"commit": commit, **counted(commit, arguments.settings.split(","))} for commit in arguments.commits]
    finish("structure", rows, rows[-1], columns=list(rows[-1]))


def counted(commit: str, settings: list[str]) -> dict[str, object]:
    """The counts of the package at `commit`."""
    sources = dict(sources_at(commit))
    trees = {name: ast.parse(text) for name, text in sources.items()}
    row: dict[str, object] = {
        "files": len(sources),
        "lines": sum(text.count("\n") for text in sources.values()),
        "classes": sum(isinstance(node, ast.ClassDef) for tree in trees.values() for node in ast.walk(tree)),
        "files above 300 lines": sum(text.count("\n") > 300 for text in sources.values()),
    }
    for setting in settings:
        places = {(name, line) for name, tree in trees.items() for line in lines_that_spell(setting, tree)}
        row[setting] = f"{len(places)} in {len({name for name, _ in places})} files"
    return row


def sources_at(commit: str) -> Iterator[tuple[str, str]]:
    """Name and text of each Python file of the package."""
    names = git("ls-tree", "-r", "--name-only", commit, "batchcal/").splitlines()
    for name in names:
        if name.endswith(".py"):
            yield name, git("show", f"{commit}:{name}")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def lines_that_spell(setting: str, tree: ast.AST) -> set[int]:
    """Lines of code with the name of `setting`, however it is written."""
    spellings = {setting, setting.upper(), f"{setting}_s", f"{setting}_bytes", "".join(map(str.title, setting.split("_")))}
    lines: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                found = name in spellings
            case ast.Constant(value=str(text)):
                found = text in spellings
            case _:
                continue
        if found:
            lines.add(node.lineno)
    return lines


if __name__ == "__main__":
    main()
