"""Other load on our processors during a measurement: other processes, the kernel, a hypervisor's other guests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from typing import Final

import psutil

from batchcal.machine.roots import THIS_MACHINE, Root

STAT: Final = "/proc/stat"
BUSY: Final = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal: time that is neither idle nor waiting for a disk. Guests are part of user."""
FULL: Final = 0.9
"""Total share of our processors in use. Below it, other load takes nothing from us."""
DISTURBING: Final = 0.08
"""Share of our processors that others may use before a turn counts as disturbed. A quiet machine of two shows 1 to 3 %."""
LEAST_S: Final = 0.1
"""Minimum seconds. The kernel counts in hundredths of a second; a shorter time gives no information."""


class Foreign:
    """Share of our processors that others have used since this object was created."""

    def __init__(self, root: Root = THIS_MACHINE) -> None:
        self._root = root
        self._start_s = time.monotonic()
        self._busy = _busy_s(root)
        self._own = _own_s()

    def share(self) -> float | None:
        """Return the share that others used, from 0 to 1. 0 if there was enough for all. None: unknown, or too little time has
        passed."""
        elapsed_s = time.monotonic() - self._start_s
        busy = _busy_s(self._root)
        if busy is None or self._busy is None or elapsed_s < LEAST_S:
            return None
        capacity = elapsed_s * max(1, len(os.sched_getaffinity(0)))
        used, own = busy - self._busy, _own_s() - self._own
        return max(0.0, min(1.0, (used - own) / capacity)) if used >= FULL * capacity else 0.0


def disturbed(share: float | None) -> bool:
    """Return True if others used so much that a time is unreliable."""
    return share is not None and share > DISTURBING


def _busy_s(root: Root) -> float | None:
    """Return the seconds for which the processors of our mask were busy since the machine started, summed."""
    text = root.read(STAT)
    if text is None or not hasattr(os, "sched_getaffinity"):
        return None
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in text.splitlines():
        name, *fields = line.split()
        if name in ours:
            ticks += sum(int(fields[place]) for place in BUSY if place < len(fields))
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Return the processor seconds that this process and its workers have used."""
    used = time.process_time()
    for worker in multiprocessing.active_children():
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(worker.pid).cpu_times()
            used += times.user + times.system
    return used
