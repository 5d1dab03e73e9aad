"""Ending a child, at whatever moment of its life."""

from __future__ import annotations

import os
import signal
import time

import pytest

from batchcal.guard.cleanup.kill import kill_group

pytestmark = pytest.mark.child


def test_a_child_that_has_no_group_yet_is_killed() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    kill_group(child)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
