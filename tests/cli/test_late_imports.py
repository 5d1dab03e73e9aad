"""Modules of the command line import at their top, except what would make every verb slow to start."""

from __future__ import annotations

import ast
from pathlib import Path

import batchcal.cli

LATE = (
    "batchcal.cli.verbs",  # only the verb that is called
    "batchcal.cli.views",  # Rich
    "batchcal.cli.output.page_file",  # Jinja2
    "batchcal.guard",
    "batchcal.hpo",  # optuna
    "batchcal.measure",
    "batchcal.runtime.apply",  # torch
    "batchcal.train",  # torch
    "batchcal.workload",  # torch
    "importlib.metadata",
    "optuna",
    "platform",
    "rich",
    "termios",  # not on Windows
    "tomli_w",  # of the extra hpo
    "tty",
)
# Names that the module uses otherwise: an option, or the result of another function.
SAME_NAME = {"batchcal.cli.output.document.study", "batchcal.plan.formats.as_json", "batchcal.plan.formats.failure_sh", "json"}


def late_imports(source: str) -> list[str]:
    """What functions import, as `module.name`."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    found: list[str] = []
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.ImportFrom):
            found += (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
    return found


def test_cli_functions_import_only_slow_modules() -> None:
    unnecessary = {
        f"{path.name}: {name}"
        for path in Path(batchcal.cli.__file__).parent.rglob("*.py")
        for name in late_imports(path.read_text())
        if name not in SAME_NAME and not any(f"{name}.".startswith(f"{module}.") for module in LATE)
    }
    assert not unnecessary
