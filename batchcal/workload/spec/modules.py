"""File of the module of a SPEC, and the name under which it is imported. Only reads the disk and imports nothing."""

from __future__ import annotations

import difflib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, ModuleSpec, PathFinder
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from batchcal.core.errors import UsageError
from batchcal.workload.spec.reference import Spec
from batchcal.workload.spec.syntax import syntax_error, syntax_of


class FileModule(NamedTuple):
    """The name of a file as a module, and the folders of the module search path that it needs."""

    name: str
    folders: tuple[Path, ...]
    """First on the path, in this order: the file's own folder, as for `python FILE`, and the folder above its package."""
    parents: tuple[Path, ...] = ()
    """Last on the path: the folder above a plain folder whose files import each other relatively."""


def module_of_file(file: Path) -> FileModule:
    """The name under which a spawned worker finds the file's classes, too: its place in its package, else that of a script.

    A file that imports relatively, in a folder without an __init__.py, is a part of a namespace package, which needs the folder
    above. Where another module has the folder's name, the file stays a script, and Python refuses the relative import.

    Raises:
        UsageError: its name has a dot, which no module can have.
        UserCodeError: Python cannot read the file.
    """
    if "." in file.stem:
        raise UsageError(
            f"{file.name} cannot be imported",
            known="Python reads the part before the dot in its name as a package",
            try_=f"rename it to {file.stem.replace('.', '_')}.py",
        )
    syntax = syntax_of(file.read_bytes(), file.name)
    if syntax.error:
        raise syntax_error(file.name, syntax.error)
    depth = _package_depth(file)
    if syntax.level > depth and _is_free_namespace(file, syntax.level):
        return FileModule(_name(file, syntax.level), (file.parent,), (file.parents[syntax.level],))
    if depth == 0:
        return FileModule(file.stem, (file.parent,))
    top, root = file.parents[depth - 1].name, file.parents[depth]
    hides_package = (file.parent / f"{top}.py").is_file() or (file.parent / top / "__init__.py").is_file()
    return FileModule(_name(file, depth), (root, file.parent) if hides_package else (file.parent, root))


def _package_depth(file: Path) -> int:
    """The number of folders above the file that are packages."""
    depth = 0
    for folder in file.parents:
        if not (folder / "__init__.py").is_file() or not folder.name.isidentifier():
            break
        depth += 1
    return depth


def _name(file: Path, depth: int) -> str:
    return ".".join([*(file.parents[above].name for above in reversed(range(depth))), file.stem])


def _is_free_namespace(file: Path, depth: int) -> bool:
    """True if the `depth` folders above the file can be packages: no other module has the name of the first."""
    if depth >= len(file.parents) or any("." in file.parents[above].name for above in range(depth)):
        return False
    top = file.parents[depth - 1]
    spec = module_named(top.name, (str(file.parent), *sys.path, str(top.parent)))
    locations = None if spec is None else spec.submodule_search_locations
    return locations is not None and str(top) in map(_resolved, locations)


def _resolved(location: str) -> str:
    return str(Path(location).resolve())


def module_named(top: str, path: Sequence[str]) -> ModuleSpec | None:
    """The place where Python would find a top-level module on `path`. Nothing is imported.

    One search over all folders: a package wins over a folder without __init__.py that comes before it.
    """
    if top in sys.builtin_module_names:
        return BuiltinImporter.find_spec(top)
    spec = PathFinder.find_spec(top, path)
    if spec is not None:
        return spec
    try:
        return importlib.util.find_spec(top)  # hooks of editable installs
    except (ValueError, ImportError):
        return None


def make_importable(first: Sequence[Path], last: Sequence[Path] = ()) -> None:
    """Puts folders first on the module search path, in this order, and others last. A spawned worker is sent that path."""
    for folder in reversed(first):
        text = str(folder)
        if text in sys.path:
            sys.path.remove(text)
        sys.path.insert(0, text)
    sys.path.extend(str(folder) for folder in last if str(folder) not in sys.path)


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
            try_=f"batchcal calibrate {quote((Path(named) / 'train.py').as_posix())}:{spec.attribute}",
        )
    folder = file.parent
    files = sorted(path.name for path in folder.glob("*.py")) if folder.is_dir() else []
    close = difflib.get_close_matches(file.name, files, n=1) or difflib.get_close_matches(f"{file.name}.py", files, n=1)
    nearest = (Path(named).parent / close[0]).as_posix() if close else "path/to/file.py"
    raise UsageError(
        f"there is no file {named}",
        known=f"looked for {file}" if folder.is_dir() else f"the folder {folder} does not exist",
        try_=f"batchcal calibrate {quote(nearest)}:{spec.attribute}",
    )


def no_module(name: str, missing: str, attribute: str, directory: Path) -> UsageError:
    """The error for a SPEC with the module `name`, of which `missing` (itself, or a package above it) does not exist."""
    parent, _, last = missing.rpartition(".")
    siblings = [module.name for module in pkgutil.iter_modules([str(directory / parent.replace(".", "/"))])]
    close = difflib.get_close_matches(last, siblings, n=1)
    nearest = f"{parent}.{close[0]}".lstrip(".") + name.removeprefix(missing) if close else f"path/to/{name.replace('.', '/')}.py"
    return UsageError(
        f"there is no module {missing}",
        known=f"searched in {directory} and in the module path of {sys.executable}",
        try_=f"batchcal calibrate {quote(nearest)}:{attribute}"
        + ("" if close else ", or start it in the folder that contains the module"),
    )
