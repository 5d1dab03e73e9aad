"""A damaged file in a folder of batchcal's own is replaced, by every caller of `calibrate`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import path_of
from batchcal.calibration.store import Loaded, journal_path, load
from batchcal.cli.commands.calibration import Destination, obtain_calibration
from batchcal.cli.invocation import Invocation
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import UsageError
from batchcal.core.units import GIB
from batchcal.detect.detect import detect
from batchcal.hpo.shapes import ShapeBook
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.options import options
from batchcal.measure.result import Need
from batchcal.values.settings import Settings
from batchcal.workload.spec.reference import TaskReference

DAMAGED = pytest.mark.parametrize("damaged", [b"\0" * 512, b'{"batchcal": "0.', b""], ids=["zeros", "cut", "empty"])


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskReference:
    """A task in a project, whose probes are numbers."""
    monkeypatch.delenv("BATCHCAL_CALIBRATION", raising=False)
    monkeypatch.setattr("batchcal.measure.calibrate.child_probe", lambda *arguments, **named: FakeProbe())
    (tmp_path / "batchcal.toml").touch()
    (tmp_path / "task.py").write_text("def task():\n    raise SystemExit\n")
    return TaskReference(spec="task.py:task", directory=str(tmp_path))


def damage(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    journal_path(path).write_bytes(content or b"\0")


@DAMAGED
def test_a_damaged_file_at_the_default_path_is_replaced(reference: TaskReference, tmp_path: Path, damaged: bytes) -> None:
    path = path_of(reference, {})
    damage(path, damaged)
    invocation = Invocation(
        settings=Settings(flags={"memory_limit": "2GiB"}, environ={}), reference=reference, directory=tmp_path
    )
    assert obtain_calibration(invocation, Need(), Messages(quiet=True)).path == path
    assert isinstance(load(path, trust=find_trust(os.environ)), Loaded)
    damage(path, b"\0" * 512)
    with pytest.raises(UsageError, match="not a calibration"):
        obtain_calibration(invocation, Need(), Messages(quiet=True), destination=Destination(path))


@DAMAGED
def test_a_damaged_file_of_a_shape_is_replaced(reference: TaskReference, tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "shapes" / "shape.json"
    damage(path, damaged)
    book = ShapeBook(reference, options(2 * GIB), detect(), path.parent)
    _, measured = book._calibrated({}, options(2 * GIB), path)
    assert measured
    assert isinstance(load(path, trust=find_trust(os.environ)), Loaded)
