"""Open files, sockets, connections, pools and threads that a dataset holds: forked workers would share or lack them."""

from __future__ import annotations

import functools
import io
import logging
import os
import socket
import stat
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from itertools import islice
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

MOST_OBJECTS: Final = 20_000
TIME_LIMIT_S: Final = 0.1
"""The search ends here: a resource that it misses is left to the comparison of samples."""
MOST_ITEMS: Final = 64
"""Number of items of each container that are checked: a list of open files has one among its first."""
HANDLES: Final = frozenset(
    {"sqlite3.Connection", "sqlite3.Cursor", "h5py._hl.files.File", "h5py._hl.dataset.Dataset", "lmdb.Environment"}
)
"""Classes that hold a file or a lock and have no `fileno()`. SQLite, HDF5 and LMDB forbid their use after a fork."""
GENERATORS: Final = frozenset(
    {"numpy.random._generator.Generator", "numpy.random.mtrand.RandomState", "random.Random", "torch._C.Generator"}
)
_T = TypeVar("_T")
_LEAVES: Final = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, Tensor, logging.Logger)
"""Values that are not searched. The file of a logger is only written to."""


@runtime_checkable
class _HasDescriptor(Protocol):
    def fileno(self) -> object: ...


class HeldResource(NamedTuple):
    """A resource and the attribute that holds it."""

    place: str
    description: str

    def __str__(self) -> str:
        return f"{self.place} is {self.description}"


def find_held_resource(*datasets: object) -> HeldResource | None:
    """The first resource of `datasets`, by breadth: attributes, containers, closures, nested datasets and transforms."""
    return _find(datasets, _resource)


def find_generator(*datasets: object) -> HeldResource | None:
    """The first random generator of `datasets`: each worker has a copy of it, and all draw the same numbers."""
    return _find(datasets, _generator)


def _find(datasets: tuple[object, ...], describe: Callable[[object], str]) -> HeldResource | None:
    ends = time.monotonic() + TIME_LIMIT_S
    queue: deque[tuple[str, object]] = deque((type(dataset).__name__, dataset) for dataset in datasets if dataset is not None)
    visited: set[int] = set()
    references: list[object] = []  # an id is unique only while its object lives
    while queue and len(visited) < MOST_OBJECTS and time.monotonic() < ends:
        place, value = queue.popleft()
        if isinstance(value, _LEAVES) or id(value) in visited:
            continue
        visited.add(id(value))
        references.append(value)
        description = describe(value)
        if description:
            return HeldResource(place, description)
        queue.extend(_inside(place, value))
    return None


def _generator(value: object) -> str:
    kind = type(value)
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    return f"a random generator ({kind.__name__})" if names & GENERATORS else ""


def _resource(value: object) -> str:
    """A phrase for a resource; empty for anything else."""
    kind = type(value)
    if isinstance(value, Pool):
        return "a pool of processes"
    if isinstance(value, Executor):
        # Before its first task it has neither threads nor processes: a forked worker starts its own.
        started = getattr(value, "_threads", None) or getattr(value, "_processes", None)
        return f"a {kind.__name__}" if started else ""
    if isinstance(value, BaseProcess | subprocess.Popen):
        return "a process"
    if isinstance(value, threading.Thread):
        return "a running thread" if value.is_alive() else ""
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    if names & HANDLES:
        return f"an open {kind.__module__.partition('.')[0]} {kind.__name__}"
    return _descriptor(value)


def _descriptor(value: object) -> str:
    """A phrase for a regular file that can be read, or a socket."""
    if getattr(type(value), "fileno", None) is None or not isinstance(value, _HasDescriptor):
        return ""
    try:
        if isinstance(value, io.IOBase) and not value.readable():
            return ""
        number = value.fileno()
        if not isinstance(number, int) or number < 0:
            return ""
        mode = os.fstat(number).st_mode
    except Exception:  # noqa: BLE001 - closed, in memory, or a method of the user's that raises anything
        return ""
    if stat.S_ISREG(mode):
        name: object = getattr(value, "name", None)
        return f"an open file ({name})" if isinstance(name, str) else "an open file"
    return "an open socket" if stat.S_ISSOCK(mode) or isinstance(value, socket.socket) else ""


def _inside(place: str, value: object) -> Iterable[tuple[str, object]]:
    """Contents of `value`, each with its place."""
    if isinstance(value, Mapping):
        return [(f"{place}[{key!r:.20}]", child) for key, child in _first(value.items())]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [(f"{place}[{position}]", child) for position, child in enumerate(_first(value))]
    if isinstance(value, functools.partial):
        return [(place, value.func), (place, value.args), (place, value.keywords)]
    if isinstance(value, MethodType | BuiltinMethodType):
        return [(place, value.__self__)]
    if isinstance(value, FunctionType):
        return [(place, cell) for cell in value.__closure__ or ()]
    if isinstance(value, CellType):
        try:
            return [(place, value.cell_contents)]
        except ValueError:
            return []
    if type(value).__module__.partition(".")[0] in ("multiprocessing", "numpy"):
        return []  # queues, locks and shared values are made for forked processes; arrays hold numbers
    try:
        attributes = dict(vars(value))
    except TypeError:
        attributes = {}
    for name in _slots(type(value)):
        try:
            attributes[name] = getattr(value, name)
        except Exception:  # noqa: BLE001 - a slot that is empty, or a descriptor of the user's
            continue
    return [(f"{place}.{name}", child) for name, child in attributes.items()]


def _slots(kind: type) -> Iterable[str]:
    for base in kind.__mro__:
        slots: object = vars(base).get("__slots__", ())
        if isinstance(slots, str):
            yield slots
        elif isinstance(slots, Iterable):
            yield from (name for name in slots if isinstance(name, str))


def _first(values: Iterable[_T]) -> list[_T]:
    try:
        return list(islice(iter(values), MOST_ITEMS))
    except Exception:  # noqa: BLE001 - a container of the user's may raise anything
        return []
