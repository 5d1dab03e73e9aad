"""Identity of a command: its template, and the files that it names with what they import from the project."""

from __future__ import annotations

import contextlib
import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Final

from batchcal.core.canonical import dumps_line
from batchcal.core.errors import BatchcalError
from batchcal.guard.channel.wire import JSON
from batchcal.workload.command.template import Template
from batchcal.workload.spec.identity import TaskIdentity, hashes_of
from batchcal.workload.spec.reference import COMMAND_MARK, TaskReference

_LARGEST_FILE: Final = 4 << 20
"""Larger files in the arguments are data, bytes."""


def command_reference(template: Template, directory: Path) -> TaskReference:
    """Return the reference of a command that starts in `directory`."""
    return TaskReference(spec=f"{COMMAND_MARK}{template.text}", directory=str(directory.absolute()), command=template.words)


def identify_command(reference: TaskReference) -> TaskIdentity:
    """Hash the words of the command, every Python source that it names with all modules of the project that it imports, and
    every other small file that an argument names, such as a config.

    Comments, docstrings and formatting of Python sources do not change the identity. Programs outside of the project do not.
    """
    directory, words = Path(reference.directory), Template(words=reference.command).masked
    hashes: dict[str, str] = {}
    for before, text in pairwise(("", *words)):
        word = text.rpartition("=")[2]
        spec = _spec_of(word, before)
        if spec:
            with contextlib.suppress(BatchcalError, OSError):  # another program will report it
                hashes |= hashes_of(TaskReference(spec=spec, directory=reference.directory))
        file = directory / word
        if not spec and word and _is_small_file(file):
            hashes[word] = hashlib.sha256(file.read_bytes()).hexdigest()
    listed: list[JSON] = [*words]
    document: dict[str, JSON] = {"command": listed, "sources": dict(sorted(hashes.items()))}
    return TaskIdentity(
        spec=reference.spec,
        arguments={},
        sources=dict(sorted(hashes.items())),
        digest=hashlib.sha256(dumps_line(document)).hexdigest(),
        hashes="syntax",
        folder=reference.directory,
    )


def _spec_of(word: str, before: str) -> str:
    """Return a SPEC for a Python file or a module after `-m`. Empty: the word is neither."""
    if word.endswith(".py"):
        return f"{word}:main"
    return f"{word}:main" if before == "-m" and all(part.isidentifier() for part in word.split(".")) else ""


def _is_small_file(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= _LARGEST_FILE
    except (OSError, ValueError):
        return False
