"""Counting a pickle costs neither the bytes nor the time of making it."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy
import pytest
import torch

from batchcal.workload.data import pickled
from batchcal.workload.data.pickled import pickled_bytes


class Plain:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize("value", [3, "text" * 50, [1, 2, 3] * 1000, {"a": b"x" * 70_000}, Plain(a=[Plain(b=2)])])
def test_the_pickled_size_matches_the_real_pickle(value: object) -> None:
    found = pickled_bytes(value)
    assert found.complete
    assert found.size == len(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1_000_000), torch.nn.Parameter(torch.zeros(1_000_000)), numpy.zeros(500_000), {"a": [numpy.zeros(500_000)]}],
)
def test_values_of_tensors_and_arrays_are_counted(value: object) -> None:
    found = pickled_bytes(value)
    assert found.complete
    assert found.size is not None
    assert 4_000_000 < found.size < 4_001_000


def test_views_of_the_same_storage_are_counted_once() -> None:
    whole = torch.zeros(1_000_000)
    size = pickled_bytes([whole, whole[10:], whole.view(1000, 1000)]).size
    assert size is not None
    assert size < 4_001_000


def test_measuring_a_large_pickle_uses_little_memory() -> None:
    value = Plain(array=numpy.zeros(50_000_000), tensor=torch.zeros(10_000_000), text=b"x" * (200 << 20))
    tracemalloc.start()
    found = pickled_bytes(value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.size is not None
    assert found.size > 400_000_000
    assert peak < 10 << 20


def test_the_pickled_size_supports_object_arrays_and_sparse_tensors() -> None:
    objects = numpy.array([1, "a", None], dtype=object)
    found = pickled_bytes(objects)
    assert found.size == len(pickle.dumps(objects, protocol=pickle.HIGHEST_PROTOCOL))
    assert pickled_bytes(torch.eye(3).to_sparse()).complete


def test_measuring_a_pickle_stops_at_size_and_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pickled_bytes([b"x" * (1 << 20) for _ in range(100)])
    assert not found.complete
    assert found.size is not None
    assert pickled.STREAM_LIMIT_BYTES < found.size < pickled.STREAM_LIMIT_BYTES + (2 << 20)
    monkeypatch.setattr(pickled, "TIME_LIMIT_S", -1.0)
    assert not pickled_bytes([1, 2, 3]).complete


class Refuses:
    def __reduce__(self) -> str:
        raise OSError("the file\nis open")


def test_an_object_that_cannot_be_pickled_reports_the_reason() -> None:
    assert pickled_bytes([Refuses()]) == pickled.Pickled(None, complete=True, why_not="OSError: the file")


class Exhausts:
    def __reduce__(self) -> str:
        raise MemoryError


def test_a_memory_error_during_pickling_is_raised() -> None:
    with pytest.raises(MemoryError):
        pickled_bytes(Exhausts())
