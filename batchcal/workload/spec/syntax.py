"""The syntax tree of a source file: its hash without comments and docstrings, its imports, its errors. Nothing is imported."""

from __future__ import annotations

import ast
import functools
import hashlib
import traceback
import warnings
from typing import Final, NamedTuple

from batchcal.core.errors import UserCodeError

_DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_CACHED_FILES: Final = 64
"""One command reads each file at most twice: for its name as a module, and for its hash."""


class Import(NamedTuple):
    """One import statement, or one name of it."""

    level: int
    """The dots before the name: 0 is an absolute import."""
    module: str
    """Empty for `from . import name`."""
    names: tuple[str, ...]
    """Names that `from ... import` takes from the module, without `*`."""


class Syntax(NamedTuple):
    """Parts of a source file."""

    digest: str
    """sha256 of the syntax tree without positions and docstrings; of the bytes where Python cannot read them."""
    imports: tuple[Import, ...]
    error: str
    """Python's own text of the SyntaxError; empty where there is none."""

    @property
    def level(self) -> int:
        """The most dots of a relative import: so many folders above the file must be packages."""
        return max((each.level for each in self.imports), default=0)


@functools.lru_cache(maxsize=_CACHED_FILES)
def syntax_of(source: bytes, name: str) -> Syntax:
    """The syntax of a file that is called `name`.

    The hash costs 2 ms for 70 KB, beside 8 ms for the parser.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python shows a SyntaxWarning when it imports the file
            tree = ast.parse(source, name)
    except (SyntaxError, ValueError, RecursionError) as error:
        return Syntax(_sha256(source), (), "".join(traceback.format_exception_only(error)).strip())
    imports: dict[Import, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update((Import(0, alias.name, ()), None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names if alias.name != "*")
            imports[Import(node.level, node.module or "", names)] = None
        elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    try:
        digest = _sha256(ast.dump(tree).encode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):  # a number of more than 4,300 digits, an expression of a thousand levels
        digest = _sha256(source)
    return Syntax(digest, tuple(imports), "")


def syntax_error(name: str, error: str) -> UserCodeError:
    """The error for a file that Python cannot read.

    Args:
        error: the text of the SyntaxError.
    """
    message = error.splitlines()[-1].removeprefix("SyntaxError: ")
    return UserCodeError(
        f"{name} is not valid Python: {message}", known=error, try_=f"correct {name} at that line, then run the same command"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
