"""Identity of a task, computed from its sources and arguments without importing them (and so without torch)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Final, Literal

from batchcal.core.canonical import JSON, dumps_line
from batchcal.core.values import Record
from batchcal.workload.spec.modules import file_of, module_named, module_of_file, no_module
from batchcal.workload.spec.reference import Scalar, TaskReference, parse_spec
from batchcal.workload.spec.syntax import Import, Syntax, syntax_error, syntax_of

_BATCHCAL: Final = "batchcal"
_EXAMPLES: Final = "batchcal.workload.examples"
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


class TaskIdentity(Record):
    """Identity of a task, computed without loading torch."""

    spec: str
    """`module:factory` or `file.py:factory`, as given."""
    arguments: dict[str, Scalar]
    sources: dict[str, str]
    """sha256 of each source file that defines the task, by path relative to the project (or module name)."""
    digest: str
    """sha256 over the factory's name, the arguments and the hashes of the sources. Independent of folders."""
    hashes: Literal["bytes", "syntax"] = "bytes"
    """Content of the hashes of `sources`: all bytes (up to batchcal 0.1.0), or the syntax trees without docstrings."""
    folder: str | None = None
    """Absolute: where the file of the factory was."""


def identify(reference: TaskReference) -> TaskIdentity:
    """Hash the file that the spec names and every module of the project that it imports, directly or indirectly.

    Modules are found by reading import statements, also those within functions; imports by a computed name are not covered.
    Comments, docstrings, formatting, data and the folder do not change the identity. Installed packages are compared by
    their versions elsewhere.

    Raises:
        UsageError: the module or file does not exist.
        UserCodeError: Python cannot read the factory's file.
    """
    sources = _Sources(reference)
    hashes = sources.hashed()
    start = hashes[sources.key]
    arguments: dict[str, JSON] = dict(reference.arguments.items())
    other_hashes: list[JSON] = [*sorted(value for key, value in hashes.items() if key != sources.key)]
    factory = parse_spec(reference.spec).attribute
    document: dict[str, JSON] = {"factory": factory, "arguments": arguments, "source": start, "others": other_hashes}
    return TaskIdentity(
        spec=reference.spec,
        arguments=reference.arguments,
        sources=hashes,
        digest=hashlib.sha256(dumps_line(document)).hexdigest(),
        hashes="syntax",
        folder=str(sources.folder),
    )


def hashes_of(reference: TaskReference) -> dict[str, str]:
    """Return the hash of each source file, see `TaskIdentity.sources`.

    Raises:
        UsageError, UserCodeError: see `identify`.
    """
    return _Sources(reference).hashed()


class _Sources:
    """Walks the import statements of a task."""

    def __init__(self, reference: TaskReference) -> None:
        directory = Path(reference.directory).resolve()
        spec = parse_spec(reference.spec)
        if spec.file is not None:
            file = file_of(spec, directory)
            named = module_of_file(file)
            self._path = [*map(str, named.folders), *sys.path, *map(str, (*named.parents, directory))]
            packages = [folder for folder in named.folders if folder != file.parent]
            self._project = (*packages, *named.folders, directory)
            self._start, self._start_file = named.name, file
        else:
            self._path = [str(directory), *sys.path]
            self._project = (directory,)
            self._start = spec.module or ""
            module_spec = self._spec_of(self._start)
            start_file = None if module_spec is None else _file(module_spec)
            if start_file is None:
                missing = (name for name in _with_parents(self._start) if self._spec_of(name) is None)
                raise no_module(self._start, next(missing, self._start), spec.attribute, directory)
            self._start_file = start_file
            syntax = syntax_of(start_file.read_bytes(), start_file.name)
            if start_file.suffix == ".py" and syntax.error:
                raise syntax_error(self._key(self._start, start_file), syntax.error)
        self.folder = self._start_file.parent
        self.key = self._key(self._start, self._start_file)

    def hashed(self) -> dict[str, str]:
        """sha256 by name of each source file, sorted."""
        hashes: dict[str, str] = {}
        waiting: list[tuple[str, Path]] = [(self._start, self._start_file)]
        waiting += self._local(_with_parents(self._start)[:-1])
        visited: set[Path] = set()
        while waiting:
            name, file = waiting.pop()
            if file in visited:
                continue
            visited.add(file)
            source = file.read_bytes()
            if file.suffix != ".py":
                hashes[self._key(name, file)] = hashlib.sha256(source).hexdigest()
                continue
            syntax = syntax_of(source, file.name)
            hashes[self._key(name, file)] = syntax.digest
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += self._local(_imported(syntax, package))
        return dict(sorted(hashes.items()))

    def _local(self, names: list[str]) -> Iterator[tuple[str, Path]]:
        """The modules, and the packages that contain them, that belong to the project."""
        for full_name in names:
            for name in _with_parents(full_name):
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or (top == _BATCHCAL and not _is_example(name)):
                    continue
                spec = self._spec_of(name)
                if spec is None:
                    break  # not a module, or a name within one: what lies below it is none either
                file = _file(spec)
                if file is not None and self._is_local(name, file):
                    yield name, file

    def _is_local(self, name: str, file: Path) -> bool:
        if _is_example(name):
            return True
        root = next((folder for folder in self._project if file.is_relative_to(folder)), None)
        return root is not None and _INSTALLED.isdisjoint(file.relative_to(root).parts)

    def _spec_of(self, name: str) -> ModuleSpec | None:
        """The place where Python would find the module; its parents are not imported."""
        spec: ModuleSpec | None = None
        for part in _with_parents(name):
            if "." not in part:
                spec = module_named(part, self._path)
            else:
                folders = None if spec is None else spec.submodule_search_locations
                spec = None if folders is None else _below(part, list(folders))
            if spec is None:
                return None
        return spec

    def _key(self, name: str, file: Path) -> str:
        root = next((folder for folder in self._project if file.is_relative_to(folder)), None)
        return name if root is None or _is_example(name) else file.relative_to(root).as_posix()


def _below(name: str, folders: list[str]) -> ModuleSpec | None:
    """A module in one of `folders`, which are those of the package that it is in."""
    try:
        return PathFinder.find_spec(name, folders)
    except KeyError:
        # A folder without __init__.py in another one: Python says so only of packages whose parent is imported.
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(Path(folder, name.rpartition(".")[2])) for folder in folders]
        return spec


def _file(spec: ModuleSpec) -> Path | None:
    """None: built in, or a folder of modules without an __init__.py."""
    return Path(spec.origin).resolve() if spec.has_location and spec.origin is not None else None


def _imported(syntax: Syntax, package: str) -> list[str]:
    """The modules that a file may import by name; `from a import b` may mean the module `a.b`."""
    names: dict[str, None] = {}
    for each in syntax.imports:
        base = _absolute(each, package)
        if base is not None:
            names[base] = None
            names.update(dict.fromkeys(f"{base}.{name}" for name in each.names))
    return list(names)


def _absolute(each: Import, package: str) -> str | None:
    if each.level == 0:
        return each.module
    parts = package.split(".")
    base = parts[: len(parts) - each.level + 1]
    if not package or not base:
        return None
    return ".".join([*base, *([each.module] if each.module else [])])


def _with_parents(name: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _is_example(name: str) -> bool:
    return f"{name}.".startswith(f"{_EXAMPLES}.")
