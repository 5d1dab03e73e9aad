"""The target of a command -> TaskReference. Imports neither torch nor user code."""

from __future__ import annotations

import ast
from pathlib import Path
from shlex import quote
from typing import Final

from batchcal.core.errors import UsageError
from batchcal.workload.spec.config import read_config
from batchcal.workload.spec.modules import file_of
from batchcal.workload.spec.reference import Spec, TaskReference, parse_spec

_FORMS: Final = "a task is package.module:factory, path/to/file.py:factory or config.toml"


def reference_of(target: str, *, directory: Path) -> TaskReference:
    """The task that `target` names: `package.module:factory`, `path/to/file.py:factory` or `config.toml`.

    Args:
        directory: base of relative paths, and the first folder in which modules are searched; usually the working directory.

    Raises:
        UsageError: another form, or the file does not exist. Missing modules and factories are found when they are loaded.
    """
    directory = directory.absolute()
    if target.endswith(".toml") and target.isprintable():
        reference = read_config(directory / target, directory=directory).reference
        if reference is None:
            raise UsageError(
                f"{target} has no table [task]",
                known="that table names the function that returns the task",
                try_='[task]\nspec = "train.py:task"',
            )
        return reference
    if ":" not in target and target.isprintable():
        raise _without_factory(target, directory)
    spec = parse_spec(target)
    if spec.file is not None:
        file_of(spec, directory)
    return TaskReference(spec=target, directory=str(directory))


def _without_factory(target: str, directory: Path) -> UsageError:
    """The error for a target without a colon, with suggestions."""
    path = directory / target
    if not target.strip():
        return UsageError("the name of the task is empty", known=_FORMS, try_="batchcal calibrate train.py:task")
    if path.is_dir():
        configs = sorted(path.glob("*.toml")) or sorted(path.glob("*.py"))
        example = (Path(target) / (configs[0].name if configs else "train.py")).as_posix()
        ending = "" if example.endswith(".toml") else ":task"
        return UsageError(f"{target} is a folder", known=_FORMS, try_=f"batchcal calibrate {quote(example + ending)}")
    if target.endswith(".py"):
        file = file_of(Spec(target, None, "task"), directory)
        own = _functions(file)
        likely = next((name for name in own if "task" in name), own[0] if own else "task")
        return UsageError(
            f"{target} is a file; the name of the function in it that returns the task is missing",
            known=f"functions in it: {', '.join(own[:8])}" if own else "it defines no function at its top level",
            try_=f"batchcal calibrate {quote(target)}:{likely}",
        )
    if path.is_file():
        return UsageError(
            f"{target} is neither a TOML file nor a Python file", known=_FORMS, try_="batchcal calibrate train.py:task"
        )
    return UsageError(f"{target!r} does not name a function", known=_FORMS, try_=f"batchcal calibrate {quote(target)}:task")


def _functions(file: Path) -> list[str]:
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
