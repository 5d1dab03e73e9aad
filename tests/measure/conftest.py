"""What the tests of a calibration begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.probes import Desk


@pytest.fixture
def invocation(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
