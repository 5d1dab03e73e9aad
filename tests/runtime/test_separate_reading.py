"""What is read before workers are started is read in a process of its own."""

from __future__ import annotations

import os

import pytest
import torch

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.runtime.separate_reading import read_separately


def test_samples_are_read_in_this_process_without_workers() -> None:
    assert read_separately(os.getpid, workers=0) == os.getpid()


@pytest.mark.child
def test_samples_are_read_in_another_process_with_workers() -> None:
    value, process = read_separately(lambda: (torch.arange(3), os.getpid()), workers=2)
    assert value.tolist() == [0, 1, 2]
    assert process != os.getpid()


@pytest.mark.child
def test_a_read_error_in_another_process_reports_its_source_file() -> None:
    def fails() -> int:
        raise OSError("truncated")

    with pytest.raises(UserCodeError, match="reading the training data raised OSError: truncated") as raised:
        read_separately(fails, workers=1)
    assert "test_separate_reading.py" in raised.value.known


@pytest.mark.child
def test_a_batchcal_error_in_another_process_is_raised_unchanged() -> None:
    def fails() -> int:
        raise UsageError("no", try_="yes")

    with pytest.raises(UsageError, match="no") as raised:
        read_separately(fails, workers=1)
    assert raised.value.try_ == "yes"


@pytest.mark.child
def test_a_reading_process_that_exits_is_reported_with_its_exit_code() -> None:
    with pytest.raises(UserCodeError, match="the process that read samples ended with exit code 3"):
        read_separately(lambda: os._exit(3), workers=1)
