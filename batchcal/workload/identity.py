"""Which task this is, told from its sources and arguments without importing them (and so without torch)."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Final

from batchcal.core.canonical import JSON, dumps_line
from batchcal.core.values import Record
from batchcal.workload.modules import file_of, module_of_file, no_module
from batchcal.workload.reference import Scalar, TaskReference, parse_spec

_BATCHCAL: Final = "batchcal"
_EXAMPLES: Final = "batchcal.workload.examples"
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


class TaskIdentity(Record):
    """Which task, told without loading torch."""

    spec: str
    """`module:factory` or `file.py:factory`, as given."""
    arguments: dict[str, Scalar]
    sources: dict[str, str]
    """sha256 of each source file that defines the task, by path relative to the project (or module name)."""
    digest: str
    """sha256 over the above."""


def identify(reference: TaskReference) -> TaskIdentity:
    """Hashes the file that the spec names and every module of the project that it imports, directly or through others.

    Modules are found by reading import statements, those within functions too; what is imported by a computed name is not seen.
    Installed packages are told by their versions elsewhere, data by nobody: neither touching a file nor other data changes it.

    Raises:
        UsageError: there is no such module or file.
    """
    sources = _Sources(reference).hashed()
    arguments: dict[str, JSON] = dict(reference.arguments.items())
    hashes: dict[str, JSON] = dict(sources.items())
    document: dict[str, JSON] = {"spec": reference.spec, "arguments": arguments, "sources": hashes}
    return TaskIdentity(
        spec=reference.spec,
        arguments=reference.arguments,
        sources=sources,
        digest=hashlib.sha256(dumps_line(document)).hexdigest(),
    )


class _Sources:
    """Walks the import statements of a task."""

    def __init__(self, reference: TaskReference) -> None:
        self._directory = Path(reference.directory).resolve()
        self._roots = [str(self._directory)]
        spec = parse_spec(reference.spec)
        if spec.file is not None:
            file = file_of(spec, self._directory)
            named = module_of_file(file)
            self._roots = [*map(str, named.folders), *self._roots]
            self._start, self._start_file = named.name, file
        else:
            self._start = spec.module or ""
            found = self._spec_of(self._start)
            start_file = None if found is None else _file(found)
            if start_file is None:
                missing = (name for name in _with_parents(self._start) if self._spec_of(name) is None)
                raise no_module(self._start, next(missing, self._start), spec.attribute, self._directory)
            self._start_file = start_file

    def hashed(self) -> dict[str, str]:
        """sha256 by name of each source file, sorted."""
        hashes: dict[str, str] = {}
        waiting: list[tuple[str, Path]] = [(self._start, self._start_file)]
        waiting += self._local(_with_parents(self._start)[:-1])
        seen: set[Path] = set()
        while waiting:
            name, file = waiting.pop()
            if file in seen:
                continue
            seen.add(file)
            source = file.read_bytes()
            hashes[self._key(name, file)] = hashlib.sha256(source).hexdigest()
            if file.suffix == ".py":
                package = name if file.name == "__init__.py" else name.rpartition(".")[0]
                waiting += self._local(_imported(source, package))
        return dict(sorted(hashes.items()))

    def _local(self, names: list[str]) -> Iterator[tuple[str, Path]]:
        """Those of the modules, and of the packages they lie in, that belong to the project."""
        for whole in names:
            for name in _with_parents(whole):
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
        return file.is_relative_to(self._directory) and _INSTALLED.isdisjoint(file.relative_to(self._directory).parts)

    def _spec_of(self, name: str) -> ModuleSpec | None:
        """Where Python would find the module; its parents are not imported for it."""
        spec: ModuleSpec | None = None
        for part in _with_parents(name):
            if "." not in part:
                # One search over all: a folder without __init__.py gives way to a package that comes later on the path.
                spec = PathFinder.find_spec(part, [*self._roots, *sys.path]) or _hooked(part)
            else:
                folders = None if spec is None else spec.submodule_search_locations
                spec = None if folders is None else _below(part, list(folders))
            if spec is None:
                return None
        return spec

    def _key(self, name: str, file: Path) -> str:
        if not _is_example(name) and file.is_relative_to(self._directory):
            return file.relative_to(self._directory).as_posix()
        return name


def _below(name: str, folders: list[str]) -> ModuleSpec | None:
    """A module in one of `folders`, which are those of the package that it is in."""
    try:
        return PathFinder.find_spec(name, folders)
    except KeyError:
        # A folder without __init__.py in another one: Python says so only of packages whose parent is imported.
        found = ModuleSpec(name, None, is_package=True)
        found.submodule_search_locations = [str(Path(folder, name.rpartition(".")[2])) for folder in folders]
        return found


def _file(spec: ModuleSpec) -> Path | None:
    """None: built in, or a folder of modules without an __init__.py."""
    return Path(spec.origin).resolve() if spec.has_location and spec.origin is not None else None


def _hooked(top: str) -> ModuleSpec | None:
    """Where the hooks of editable installs find a top-level module; finding it imports nothing."""
    try:
        return importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None


def _imported(source: bytes, package: str) -> list[str]:
    """The modules that a file may import by name; `from a import b` may mean the module `a.b`."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []  # said, with the line, when it is loaded
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            if base is not None:
                names[base] = None
                names.update(dict.fromkeys(f"{base}.{alias.name}" for alias in node.names if alias.name != "*"))
    return list(names)


def _absolute(node: ast.ImportFrom, package: str) -> str | None:
    if node.level == 0:
        return node.module
    parts = package.split(".")
    kept = parts[: len(parts) - node.level + 1]
    if not package or not kept:
        return None
    return ".".join([*kept, *([node.module] if node.module else [])])


def _with_parents(name: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _is_example(name: str) -> bool:
    return f"{name}.".startswith(f"{_EXAMPLES}.")
