"""Unfinished parts of a calibration: a closed set, each with a sentence for people."""

from __future__ import annotations

from typing import Literal

from batchcal.core.values import Record

Part = Literal["search", "policy", "threads-and-workers", "rehearsal", "stopped"]
"""`search`: a search for a capacity did not finish; `policy`: the search under an allocator policy failed or did not run;
`threads-and-workers`: the race of threads and workers; `rehearsal`: no plan was rehearsed successfully; `stopped`: a signal or a
limit ended the calibration."""


class Undone(Record):
    """An unfinished part. A calibration that has one is not `complete`."""

    part: Part
    text: str
