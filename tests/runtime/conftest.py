"""Small models on a machine that is shared: one thread, since two that wait for each other take ten times as long."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """`gc.collect` looks at the objects of this test only: the others of the process take a tenth of a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()
