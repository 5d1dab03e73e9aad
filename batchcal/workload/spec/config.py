"""A TOML config: which task, with which arguments; and the tables of settings, which are judged elsewhere.

[task]
spec = "train.py:task"          # or "package.module:factory"
[task.args]                     # what the factory takes by name
width = 64
[calibrate]
margin = "15%"
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from batchcal.core.errors import UsageError
from batchcal.core.settings import SettingSource
from batchcal.core.values import Frozen
from batchcal.workload.spec.reference import Scalar, TaskReference, parse_spec

TABLES: Final = ("calibrate", "plan", "train", "hpo")
"""Tables of settings that a config may have, in addition to [task]."""
OWN_FILE: Final = "batchcal.toml"
PYPROJECT: Final = "pyproject.toml"
TASK_KEYS: Final = ("spec", "args")

Toml: TypeAlias = Mapping[str, object]
"""A table as tomllib reads it: text, numbers, booleans, dates, lists and tables by key."""

_EXAMPLE: Final = '[task]\nspec = "train.py:task"'
_TOO_LARGE: Final = 1 << 20


class Config(Frozen):
    """Content of one file."""

    reference: TaskReference | None
    """None: it has no [task], only settings."""
    tables: dict[str, dict[str, object]]
    """The tables of settings that are there, by name, as read."""


def read_config(path: Path, *, directory: Path) -> Config:
    """The config at `path`, of whose task `directory` is the folder.

    A file in the spec is looked for below `directory`, then beside the config.

    Raises:
        UsageError: it cannot be read, is not TOML, or has a table, a key or a value that a config does not have.
    """
    return config_of(_parsed(path), path, directory=directory)


def project_config(directory: Path) -> Config | None:
    """Content of `batchcal.toml`, else of `[tool.batchcal]` in `pyproject.toml`, in `directory`; None without either.

    Raises:
        UsageError: as `read_config`.
    """
    path = directory / OWN_FILE
    if path.is_file():
        return read_config(path, directory=directory)
    path = directory / PYPROJECT
    if not path.is_file():
        return None
    tool = _parsed(path).get("tool")
    table = tool.get("batchcal") if isinstance(tool, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise UsageError(f"{path}: tool.batchcal is not a table", try_='[tool.batchcal.task]\nspec = "train.py:task"')
    return config_of(table, path, directory=directory)


def project_source(directory: Path) -> tuple[SettingSource, Config] | None:
    """The settings of the project: the nearest batchcal.toml or pyproject.toml with [tool.batchcal], upwards, no further than the
    repository's root.

    Raises:
        UsageError: as `read_config`.
    """
    for folder in (directory, *directory.parents):
        config = project_config(folder)
        if config is not None:
            own = folder / OWN_FILE
            path = own if own.is_file() else folder / PYPROJECT
            name = path.name if folder == directory else str(path)
            return SettingSource(name, config.tables, prefix="tool.batchcal." if path.name == PYPROJECT else ""), config
        if (folder / ".git").exists():
            break
    return None


def config_of(document: Toml, path: Path, *, directory: Path) -> Config:
    """The same from what was read already.

    Raises:
        UsageError: a table, a key or a value that a config does not have.
    """
    tables: dict[str, dict[str, object]] = {}
    for name, table in document.items():
        if name not in {"task", *TABLES}:
            item = f"table [{name}]" if isinstance(table, dict) else f"key {name!r} outside of any table"
            raise _unknown(path, item, name, ("task", *TABLES), kind="tables")
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: {name} is not a table", known=f"it is {table!r}", try_=f"a line [{name}], with its keys below it"
            )
        if name != "task":
            tables[name] = table
    task = document.get("task")
    reference = _reference(task, path, directory) if isinstance(task, dict) else None
    return Config(reference=reference, tables=tables)


def _reference(task: Toml, path: Path, directory: Path) -> TaskReference:
    for name in task:
        if name not in TASK_KEYS:
            raise _unknown(
                path, f"key {name!r} in [task]", name, TASK_KEYS, kind="keys", more="arguments of the task belong to [task.args]"
            )
    spec = task.get("spec")
    if not isinstance(spec, str):
        problem = "[task] has no spec" if spec is None else f"spec is {spec!r}, not a string"
        raise UsageError(
            f"{path}: {problem}",
            known="the spec names a file or module, and the function in it that returns the task",
            try_=_EXAMPLE,
        )
    try:
        file = parse_spec(spec).file
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", known=error.known, try_=_EXAMPLE) from None
    if file is not None and not (directory / file).is_file() and (path.parent / file).is_file():
        spec = f"{_below(path.parent / file, directory)}:{spec.rpartition(':')[2]}"
    arguments = task.get("args", {})
    if not isinstance(arguments, dict):
        raise UsageError(
            f"{path}: args of [task] is not a table",
            known=f"it is {arguments!r}",
            try_="a line [task.args], with its keys below it, such as width = 64",
        )
    return TaskReference(
        spec=spec,
        directory=str(directory),
        arguments={name: _scalar(path, name, value) for name, value in arguments.items()},
        config=_below(path, directory),
    )


def _scalar(path: Path, name: str, value: object) -> Scalar:
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    kind = "not finite" if isinstance(value, float) else f"of type {type(value).__name__}"
    raise UsageError(
        f"{path}: {name} in [task.args] is {kind}",
        known="arguments of a task are strings, numbers, true or false: they go to calibration.json and to child processes",
        try_=_scalar_instead(name, value),
    )


def _scalar_instead(name: str, value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(item, str | int | float) for item in value):
        text = ",".join(str(item) for item in value)
        return f"{name} = {json.dumps(text)} below [task.args], and split the string in the function"
    return (
        f"{name} = 1.0 below [task.args]" if isinstance(value, float) else f"{name} = {json.dumps(str(value))} below [task.args]"
    )


def _unknown(path: Path, item: str, name: str, names: tuple[str, ...], *, kind: str, more: str = "") -> UsageError:
    def shown(key: str) -> str:
        head, _, tail = item.removeprefix("table ").rpartition(name)
        return f"{head}{key}{tail}" if item.startswith("table ") else key

    close = difflib.get_close_matches(name, names, n=1)
    return UsageError(
        f"{path}: unknown {item}" + (f" (did you mean {close[0]}?)" if close else ""),
        known=f"valid {kind}: {', '.join(names)}" + (f"; {more}" if more else ""),
        try_=f"{shown(close[0])} instead of {shown(name)}" if close else f"remove {shown(name)}",
    )


def _parsed(path: Path) -> Toml:
    form = "a config is a TOML file with a table [task]"
    if path.is_dir():
        raise UsageError(f"{path} is a folder", known=form, try_=f"{path / 'config.toml'}")
    if not path.exists():
        files = sorted(other.name for other in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, files, n=1)
        listed = f"TOML files in {path.parent}: {', '.join(files[:8])}" if files else f"{path.parent} has no TOML file"
        better = f"{close[0]} instead of {path.name}" if close else f"a new file {path.name} with\n{_EXAMPLE}"
        raise UsageError(f"there is no file {path}", known=listed, try_=better)
    if not path.is_file():  # reading a FIFO would wait for ever
        raise UsageError(f"{path} is not a regular file", known=form, try_=_EXAMPLE)
    try:
        if path.stat().st_size > _TOO_LARGE:
            raise UsageError(
                f"{path} is over 1 MiB", known=form, try_="save data in another file, and write its path in the config"
            )
        parsed: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", known=form, try_=f"ls -l {path}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8", known=f"byte {error.start}: {error.reason}", try_="save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML: {error}",
            known=form,
            try_='correct that line; a table is [task], and strings need quotes: spec = "train.py:task"',
        ) from None
    return parsed


def _below(path: Path, directory: Path) -> str:
    """Relative to `directory` where it lies below it, else absolute."""
    absolute = path.absolute()
    return (absolute.relative_to(directory) if absolute.is_relative_to(directory) else absolute).as_posix()
