"""Where a SPEC's module lies, and under which name it is imported. Looks at the disk only: nothing is imported here."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from pathlib import Path
from typing import NamedTuple

from batchcal.core.errors import UsageError
from batchcal.workload.reference import Spec


class FileModule(NamedTuple):
    """As what a file is imported."""

    name: str
    folders: tuple[Path, ...]
    """Must be importable, the first one first."""


def module_of_file(file: Path) -> FileModule:
    """The name under which a spawned worker finds the file's classes, too: its place in its package, else that of a script.

    The file's own folder is importable in any case, as it is for a script.

    Raises:
        UsageError: its name has a dot, which no module can have.
    """
    if "." in file.stem:
        raise UsageError(
            f"{file.name} cannot be imported",
            known="the dot in its name would make it a part of a package",
            try_=f"rename it to {file.stem.replace('.', '_')}.py",
        )
    name, folder = file.stem, file.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        name, folder = f"{folder.name}.{name}", folder.parent
    return FileModule(name, (folder,) if folder == file.parent else (folder, file.parent))


def make_importable(folders: tuple[Path, ...]) -> None:
    """Puts folders first on the module search path, in this order, each once. A spawned worker is sent that path."""
    for folder in reversed(folders):
        text = str(folder)
        if text in sys.path:
            sys.path.remove(text)
        sys.path.insert(0, text)


def file_of(spec: Spec, directory: Path) -> Path:
    """The file that a SPEC names.

    Raises:
        UsageError: there is none.
    """
    named = spec.file or ""
    file = directory / named
    if file.is_file():
        return file.resolve()
    if file.is_dir():
        raise UsageError(
            f"{named} is a folder",
            known="a SPEC names a file, and the function in it that returns the task",
            try_=f"batchcal calibrate {(Path(named) / 'train.py').as_posix()}:{spec.attribute}",
        )
    folder = file.parent
    found = sorted(path.name for path in folder.glob("*.py")) if folder.is_dir() else []
    close = difflib.get_close_matches(file.name, found, n=1) or difflib.get_close_matches(f"{file.name}.py", found, n=1)
    nearest = (Path(named).parent / close[0]).as_posix() if close else "path/to/file.py"
    raise UsageError(
        f"there is no file {named}",
        known=f"looked for {file}" if folder.is_dir() else f"there is no folder {folder} either",
        try_=f"batchcal calibrate {nearest}:{spec.attribute}",
    )


def no_module(name: str, missing: str, attribute: str, directory: Path) -> UsageError:
    """What to say where a SPEC names the module `name`, of which `missing` (itself, or a package above it) does not exist."""
    parent, _, last = missing.rpartition(".")
    siblings = [found.name for found in pkgutil.iter_modules([str(directory / parent.replace(".", "/"))])]
    close = difflib.get_close_matches(last, siblings, n=1)
    nearest = f"{parent}.{close[0]}".lstrip(".") + name.removeprefix(missing) if close else f"path/to/{last}.py"
    return UsageError(
        f"there is no module {missing}",
        known=f"looked in {directory} and where {sys.executable} looks for modules",
        try_=f"batchcal calibrate {nearest}:{attribute}" + ("" if close else ", or start it in the folder that holds the module"),
    )
