"""Size of the pickle that is sent to a worker that is not forked, counted without building it."""

from __future__ import annotations

import copyreg
import pickle
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

STREAM_LIMIT_BYTES: Final = 16 << 20
"""Counting ends here: by then the answer is "too much", and the pickler remembers every object that it met."""
TIME_LIMIT_S: Final = 0.25
_REFERENCE_BYTES: Final = 64
"""Approximate bytes of a tensor in a pickle in addition to its values: type, shape, place."""
_Made = Callable[..., object]
Reduced = str | tuple[_Made, tuple[object, ...]] | tuple[_Made, tuple[object, ...], object]
"""Result of `__reduce_ex__`."""


class Pickled(NamedTuple):
    """Bytes, or why there are none."""

    size: int | None
    """None: it does not pickle."""
    complete: bool
    """False: at least `size`; a limit ended the counting."""
    why_not: str = ""
    array_bytes: int = 0
    """Bytes of tensors and arrays that were counted."""


class _Enough(Exception):
    """A limit was reached."""


class _Counter:
    """A file that keeps only how much was written."""

    def __init__(self, stop_at: float) -> None:
        self.count = 0
        self.streamed = 0
        self._stop_at = stop_at

    def write(self, data: bytes) -> int:
        size = len(memoryview(data).cast("B"))
        self.streamed += size
        self.count += size
        if self.streamed > STREAM_LIMIT_BYTES or time.monotonic() > self._stop_at:
            raise _Enough
        return size


class _CountedTypes(dict[type, Callable[[object], Reduced]]):
    """Dispatch table that counts the values of tensors and arrays and does not pickle them: 2 GB take no time and no memory."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__(copyreg.dispatch_table)
        self._counter = counter
        self._stored: set[int] = set()

    def __missing__(self, kind: type) -> Callable[[object], Reduced]:
        if issubclass(kind, Tensor) or kind.__module__ == "numpy":
            return self._count
        raise KeyError(kind)

    def _count(self, value: object) -> Reduced:
        if isinstance(value, Tensor):
            if value.layout is not torch.strided:
                return _as_it_is(value)
            storage = value.untyped_storage()
            if storage.data_ptr() not in self._stored:  # views share one storage, which travels once
                self._stored.add(storage.data_ptr())
                self._counter.count += storage.nbytes()
        else:
            size = getattr(value, "nbytes", None)
            if not isinstance(size, int) or getattr(getattr(value, "dtype", None), "hasobject", True):
                return _as_it_is(value)
            self._counter.count += size
        return str, (" " * _REFERENCE_BYTES,)


def _as_it_is(value: object) -> Reduced:
    reduced: Reduced = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    return reduced


def pickled_bytes(value: object) -> Pickled:
    """Bytes that `value` pickles to, tensors and arrays by their storage. Ends at 16 MiB of anything else, or after 0.25 s."""
    counter = _Counter(time.monotonic() + TIME_LIMIT_S)
    try:
        pickler = pickle.Pickler(counter, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _CountedTypes(counter)
        pickler.dump(value)
    except _Enough:
        return Pickled(counter.count, complete=False, array_bytes=counter.count - counter.streamed)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's __getstate__ and __reduce__ may raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return Pickled(None, complete=True, why_not=why, array_bytes=counter.count - counter.streamed)
    return Pickled(counter.count, complete=True, array_bytes=counter.count - counter.streamed)
