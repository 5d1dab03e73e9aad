"""Resources in a dataset that forked workers would share or lack."""

from __future__ import annotations

import functools
import io
import logging
import random
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch

from batchcal.workload.data.held_resources import find_generator, find_held_resource


class Data:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("file",)

    def __init__(self, file: object) -> None:
        self.file = file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "records").write_bytes(b"1234")
    return tmp_path / "records"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def test_an_open_file_is_reported_with_its_attribute_path(path: Path, stack: ExitStack) -> None:
    file = stack.enter_context(path.open("rb"))
    assert str(find_held_resource(Data(file=file))) == f"Data.file is an open file ({path})"
    assert find_held_resource(Data(shards=[{"a": file}])) is not None
    assert find_held_resource(Data(data=Data(transform=functools.partial(print, file=file)))) is not None
    assert find_held_resource(Slotted(file)) is not None
    assert find_held_resource(Data(transform=file.seek)) is not None
    assert find_held_resource(Data(transform=lambda index: file.seek(4 * index))) is not None
    assert find_held_resource(None, Data(), Data(file=file)) is not None


def test_a_closed_or_write_only_file_is_not_a_held_resource(path: Path, stack: ExitStack) -> None:
    closed = path.open("rb")
    assert find_held_resource(Data(it=tempfile._TemporaryFileWrapper(closed, str(path), delete=False))) is not None
    closed.close()
    written = stack.enter_context((path.parent / "log").open("w"))
    logger = logging.getLogger("holdings")
    assert find_held_resource(Data(a=closed, b=written, c=logger, d=io.BytesIO(b"1"), e=path)) is None


def test_sockets_connections_pools_and_threads_are_held_resources(stack: ExitStack) -> None:
    assert find_held_resource(Data(it=stack.enter_context(socket.socket()))) is not None
    assert find_held_resource(Data(it=stack.enter_context(closing(sqlite3.connect(":memory:"))))) is not None
    assert find_held_resource(Data(it=stack.enter_context(ThreadPool(1)))) is not None
    idle = stack.enter_context(ThreadPoolExecutor(1))
    assert find_held_resource(Data(it=idle)) is None, "a forked worker starts threads of its own"
    idle.submit(int).result()
    assert find_held_resource(Data(it=idle)) is not None
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert "thread" in str(find_held_resource(Data(it=thread)))
    finally:
        release.set()
        thread.join()


def test_plain_data_and_reference_cycles_contain_no_held_resource() -> None:
    circle = Data(rows=list(range(100_000)), array=np.zeros(9), tensor=torch.zeros(9), lock=threading.Lock())
    circle.__dict__["me"] = circle
    assert find_held_resource(circle) is None


@pytest.mark.parametrize(
    "generator",
    [np.random.default_rng(0), np.random.RandomState(0), random.Random(0), torch.Generator()],
    ids=["numpy", "numpy-legacy", "python", "torch"],
)
def test_a_random_generator_is_detected_but_is_not_a_held_resource(generator: object) -> None:
    data = Data(transforms=[Data(rng=generator)])
    found = find_generator(data)
    assert found is not None
    assert str(found) == f"Data.transforms[0].rng is a random generator ({type(generator).__name__})"
    assert find_held_resource(data) is None
    assert find_generator(Data(rows=[1, 2])) is None
