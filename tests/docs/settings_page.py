"""Writes docs/settings.md from the tables of settings: `python -m tests.docs.settings_page`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import typer.main

from batchcal.cli.app import VERBS, app_with
from batchcal.core.option import Option
from batchcal.hpo.config import PrunerSettings, StudySettings
from batchcal.values.settings import Settings

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
HEAD: Final = """# Settings

<!-- Written by python -m tests.docs.settings_page from batchcal/values/settings.py; change it there. -->

The first of these that has a value wins: a flag, the variable `BATCHCAL_NAME`, the file given with `--config`, the TOML file
that is the target, `batchcal.toml` or `[tool.batchcal]` of `pyproject.toml` in the working directory or above, the default.
`-v` prints where each value comes from. Sizes need a unit (`2GiB`, `2GB`); times are `500ms`, `60s`, `5m`, `1h`;
shares are `15%` or `0.15`.

The task stands in `[task]`: `spec = "train.py:task"`, and `[task.args]` for arguments of its function.
"""


def page() -> str:
    """The text of docs/settings.md."""
    verbs = _verbs_by_flag()
    parts = [HEAD]
    for table in Settings.TABLES:
        about = (table.__doc__ or "").partition(": ")[2]
        parts.append(f"\n## [{table.name}]\n\n{about[:1].upper()}{about[1:]}\n\n{_rows(table.options(), verbs)}")
    parts.append("\n## [hpo]\n\nA study. Needs `pip install batchcal[hpo]`; `[hpo.space]` lists what it searches over.\n\n")
    parts.append(_fields(StudySettings))
    parts.append('\n`[hpo.pruner]`, or `pruner = "NAME"`:\n\n')
    parts.append(_fields(PrunerSettings))
    return "".join(parts)


def _rows(options: Iterable[Option[object]], verbs: dict[str, list[str]]) -> str:
    lines = ["| key | value | default | meaning | flag of |\n|---|---|---|---|---|\n"]
    for option in options:
        form = "true, false" if option.is_switch else option.metavar.replace("|", ", ")
        default = str(option.default).lower() if option.is_switch else option.default_text
        takers = ", ".join(verbs.get(option.key, [])) or "-"
        lines.append(f"| `{option.key}` | {form} | {default or '-'} | {option.help} | {takers} |\n")
    return "".join(lines)


def _fields(model: type[StudySettings | PrunerSettings]) -> str:
    lines = ["| key | default | meaning |\n|---|---|---|\n"]
    for name, field in model.model_fields.items():
        if name == "pruner":
            continue
        default = "required" if field.is_required() else "-" if field.default is None else f"{field.default}"
        lines.append(f"| `{name}` | {default} | {field.description} |\n")
    return "".join(lines)


def _verbs_by_flag() -> dict[str, list[str]]:
    verbs: dict[str, list[str]] = {}
    commands: object = getattr(typer.main.get_command(app_with(*VERBS)), "commands", {})
    assert isinstance(commands, dict)
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                verbs.setdefault(parameter.name, []).append(name)
    return verbs


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
