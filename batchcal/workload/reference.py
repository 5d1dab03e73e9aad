"""TaskReference: a task as text. It travels to children, which resolve it there; the object itself never travels."""

from __future__ import annotations

from batchcal.core.values import Frozen

Scalar = str | int | float | bool | None
"""What an argument of a factory may be: it must survive TOML, JSON and the command line."""


class TaskReference(Frozen):
    """`package.module:factory` or `path/to/file.py:factory`, with the arguments that it gets by name."""

    spec: str
    directory: str
    """Absolute. Importable while the task is resolved, and what relative paths are relative to."""
    arguments: dict[str, Scalar] = {}
    config: str | None = None
    """Path of the TOML config that it came from, relative to `directory` where it lies below it."""
