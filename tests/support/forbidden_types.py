"""Our own lint rule: no `Any`, no `cast`, no `type: ignore`, anywhere in the repository.

A type that says nothing hides the mistake that it was meant to find. Use `object` with isinstance, a Protocol, a TypedDict
or a pydantic model. The rule reads the syntax tree and the comments; text in ordinary strings is free.

    python tests/support/forbidden_types.py [PATH ...]     # default: the whole repository; exits 1 when it finds something
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TYPING: Final = frozenset({"typing", "typing_extensions"})
FORBIDDEN: Final = frozenset({"Any", "cast", "no_type_check", "no_type_check_decorator"})
GENERIC: Final = frozenset({"list", "tuple", "set", "frozenset", "type", "Optional", "Sequence", "Iterable", "Iterator"})
NOT_OURS: Final = frozenset({"build", "dist", "node_modules"})
SILENCER: Final = re.compile(
    r"#\s*(?:type\s*:\s*ignore|(?:pyright|pyrefly|ty)\s*:\s*(?:ignore|basic|off|standard)"
    r"|mypy\s*:\s*(?:ignore|disable|allow|no-)|pyright\s*:\s*report\w+\s*=)"
)
"""Comments that switch a type checker off, for a line or for a file."""


@dataclass(frozen=True, order=True)
class Finding:
    path: Path
    line: int
    column: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.what}"


class _Reader(ast.NodeVisitor):
    """Collects (line, column, what). Names for the typing module are gathered before anything is judged."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[int, int, str]] = []
        self._modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name in TYPING
        }
        self.visit(tree)

    def _report(self, node: ast.expr | ast.stmt, what: str) -> None:
        self.found.append((node.lineno, node.col_offset + 1, what))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*" and node.module in TYPING:
                self._report(node, f"`from {node.module} import *` brings `Any` and `cast`")
            elif alias.name == "Any" or (alias.name in FORBIDDEN and node.module in TYPING):
                self._report(node, f"`{alias.name}` is imported from {node.module or '.'}")

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == "Any":
            self._report(node, "`Any`")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in FORBIDDEN and isinstance(node.value, ast.Name) and node.value.id in self._modules:
            self._report(node, f"`{node.value.id}.{node.attr}`")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=module), ast.Constant(value=str(name)), *_]):
                if module in self._modules and name in FORBIDDEN:
                    self._report(node, f"`getattr({module}, {name!r})`")
            case ast.Call(func=ast.Name(id="TypeVar" | "NewType" | "TypeAliasType" | "ParamSpec")):
                for value in [*node.args[1:], *(keyword.value for keyword in node.keywords)]:
                    self._annotation(value)
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self._annotation(node.annotation)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._annotation(node.returns)
        self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._annotation(node.returns)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        if isinstance(node.annotation, ast.Name | ast.Attribute) and ast.unparse(node.annotation).endswith("TypeAlias"):
            self._annotation(node.value)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        # A quoted type outside an annotation (`Alias = dict[str, "Any"]`); `table["Any"]` stays free.
        of_a_type = isinstance(node.value, ast.Name) and node.value.id in GENERIC
        if of_a_type or not isinstance(node.slice, ast.Constant):
            self._annotation(node.slice)
        self.generic_visit(node)

    def _annotation(self, node: ast.expr | None) -> None:
        """Quoted types inside `node`. What is not quoted is met by the other visits."""
        for inner in ast.walk(node) if node is not None else ():
            if not (isinstance(inner, ast.Constant) and isinstance(inner.value, str)):
                continue
            try:
                quoted = ast.parse(inner.value.strip(), mode="eval").body
            except SyntaxError:
                continue
            for part in ast.walk(quoted):
                bare = isinstance(part, ast.Name) and part.id == "Any"
                of_module = isinstance(part, ast.Attribute) and part.attr == "Any"
                if bare or of_module:
                    self._report(inner, f"`Any` in the quoted type {inner.value!r}")
                    break


def findings_in(source: str, path: Path) -> list[Finding]:
    """Everything forbidden in one file, in the order of its lines.

    Raises:
        SyntaxError: it is not Python.
    """
    found = set(_Reader(ast.parse(source, filename=str(path))).found)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and SILENCER.search(token.string):
            found.add((token.start[0], token.start[1] + 1, f"`{token.string}` silences a type checker"))
    return sorted(Finding(path, *where) for where in found)


def python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every .py and .pyi file below `paths`, hidden folders and build output left out."""
    for path in paths:
        if path.is_file():
            yield path
            continue
        for entry in sorted(path.iterdir()):
            skipped = entry.name.startswith(".") or entry.name in NOT_OURS or (entry / "pyvenv.cfg").exists()
            if entry.is_symlink() or (entry.is_dir() and skipped):
                continue
            if entry.is_dir():
                yield from python_files([entry])
            elif entry.suffix in {".py", ".pyi"}:
                yield entry


def main(arguments: list[str]) -> int:
    files = list(python_files([Path(argument) for argument in arguments] or [ROOT]))
    found = [finding for path in files for finding in findings_in(path.read_text(encoding="utf-8"), path)]
    for finding in found:
        print(finding)
    print(f"{len(files)} files, {len(found)} forbidden")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
