"""What is read before workers are started is read in a process of its own."""

from __future__ import annotations

import os

import pytest
import torch

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.runtime.separate_reading import read_separately


def test_without_workers_this_process_reads() -> None:
    assert read_separately(os.getpid, workers=0) == os.getpid()


@pytest.mark.child
def test_with_workers_another_process_reads() -> None:
    value, process = read_separately(lambda: (torch.arange(3), os.getpid()), workers=2)
    assert value.tolist() == [0, 1, 2]
    assert process != os.getpid()


@pytest.mark.child
def test_an_error_comes_back_with_its_place() -> None:
    def fails() -> int:
        raise OSError("truncated")

    with pytest.raises(UserCodeError, match="reading the training data raised OSError: truncated") as raised:
        read_separately(fails, workers=1)
    assert "test_separate_reading.py" in raised.value.known


@pytest.mark.child
def test_an_error_of_batchcal_is_the_same() -> None:
    def fails() -> int:
        raise UsageError("no", try_="yes")

    with pytest.raises(UsageError, match="no") as raised:
        read_separately(fails, workers=1)
    assert raised.value.try_ == "yes"


@pytest.mark.child
def test_a_process_that_ends_is_reported() -> None:
    with pytest.raises(UserCodeError, match="the process that read samples ended with exit code 3"):
        read_separately(lambda: os._exit(3), workers=1)
