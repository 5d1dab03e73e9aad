"""Datasets that are read in order: how long they are, and whether they end."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sized

from torch.utils.data import IterableDataset


def length_of(dataset: object) -> int | None:
    """Samples of an epoch. None: a stream without a length, whose epoch ends where it ends."""
    if not isinstance(dataset, Sized):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):  # torch's own wrappers have a __len__ whatever they wrap
        if isinstance(dataset, IterableDataset):
            return None
        raise


def is_endless(dataset: object) -> bool:
    """True if a stream certainly never ends: its `__iter__` has a `while True` without an exit.

    False proves nothing: the end of a stream is known only when it has ended.
    """
    if not isinstance(dataset, IterableDataset):
        return False
    try:
        source = textwrap.dedent(inspect.getsource(type(dataset).__iter__))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):  # no source, or none of Python
        return False
    return any(isinstance(node, ast.While) and _is_true(node.test) and not _leaves(node) for node in ast.walk(tree))


def _is_true(test: ast.expr) -> bool:
    return isinstance(test, ast.Constant) and bool(test.value)


def _leaves(loop: ast.While) -> bool:
    """True if a statement in the loop may end it; also `next(...)`, by its StopIteration."""
    for node in ast.walk(loop):
        if isinstance(node, ast.Break | ast.Return | ast.Raise):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "next":
            return True
    return False
