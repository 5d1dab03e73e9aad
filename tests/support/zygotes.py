"""One zygote for many tests: most of the time that a small probe takes is the start of its own, which imports torch."""

from __future__ import annotations

import os
from typing import Literal

from batchcal.guard.launch import FunctionJob, StartedChild, ZygoteLauncher
from batchcal.machine.allocator import resolve
from batchcal.measure.children.launchers import PRELOAD


class LentZygote:
    """Used like a launcher of one's own, under the policy `default`; who borrowed it does not end it."""

    name: Literal["zygote", "spawn"] = "zygote"

    def __init__(self) -> None:
        self._launcher = ZygoteLauncher(resolve("default"), os.environ, PRELOAD)
        self._launcher.await_ready()

    @property
    def overhead_pid(self) -> int | None:
        return self._launcher.overhead_pid

    def start(self, job: FunctionJob) -> StartedChild:
        return self._launcher.start(job)

    def kill(self, child: StartedChild) -> None:
        self._launcher.kill(child)

    def poll(self, child: StartedChild) -> bool:
        return self._launcher.poll(child)

    def is_alive(self) -> bool:
        return self._launcher.is_alive()

    def close(self) -> None:
        """Nothing: others use it."""

    def end(self) -> None:
        self._launcher.close()


lent: list[LentZygote] = []
"""The one of this session, where a test has asked for it (the fixture `zygote`)."""
