"""TensorBoard as an extra: loaded when asked, told how to be installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.train.report.monitor import TrainingMonitor
from batchcal.train.report.tensorboard import TensorBoard
from tests.support.runs import a_training, tell


def test_a_missing_tensorboard_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "tensorboard.compat", "tensorboard.compat.proto", "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as caught:
        TensorBoard(tmp_path)
    assert "pip install 'batchcal[tensorboard]'" in caught.value.try_


def test_tensorboard_can_read_the_written_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = list(a_training(epochs=2, per_epoch=5, trouble=False))
    with TensorBoard(tmp_path) as board, TrainingMonitor(None, sinks=[board]) as monitor:
        tell(monitor, iter(told))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train/loss", "train/loss_scans", "eval/accuracy", "epoch/peak_bytes"} <= set(events.Tags()["scalars"])
    first = events.Scalars("train/loss")[0]
    assert (first.step, first.value) == (1, pytest.approx(told[1][1]["loss"]))
    assert [one.step for one in events.Scalars("eval/accuracy")] == [5, 10]


def test_a_tensorboard_folder_that_cannot_be_written_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        TensorBoard(tmp_path / "file" / "events")
