"""Reports of the processes of a command (`workload/command/hook`), and the rates and counts that follow from them."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from pydantic import ValidationError

from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import Message
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import Raised, RaisedLink

DROPPED_STEPS: Final = 2
"""Steps that are not timed: the first ones allocate the state of the optimizer and compile kernels."""
LEAST_STEPS: Final = 3
"""Minimum number of complete optimizer steps of a run that counts."""


class StepReport(Frozen):
    """One optimizer step of one process."""

    at_s: float
    """Time of its end, seconds. The clock is that of the process."""
    backwards: int
    """Outermost backward passes."""
    wait_s: float
    """Seconds in which the loaders prepared batches."""
    rows: tuple[tuple[int, int], ...]
    """Rows that loaders returned, by dataset."""


class RaisedReport(Frozen):
    """Exception that ended the program."""

    chain: tuple[RaisedLink, ...]


class RankReport(Frozen):
    """Last report of one process."""

    ended: str
    """`done`, `exit` or `raised`. Empty: the process has imported torch."""
    torch: str = ""
    steps: tuple[StepReport, ...] = ()
    backwards: int = 0
    workers: tuple[tuple[int, int], ...] = ()
    """DataLoader workers by dataset."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Number of samples by dataset, if it has one."""
    threads: int = 0
    accelerator: bool = False
    """The process has used CUDA."""
    world_size: int = 1
    raised: RaisedReport | None = None

    @property
    def train_data(self) -> int | None:
        """The dataset that the training reads: rows of most steps come from it. None: no loader was observed. An evaluation reads
        another one, between few steps."""
        counts = Counter(dataset for step in self.steps for dataset, rows in step.rows if rows)
        most = max(counts, key=lambda dataset: counts[dataset], default=None)
        return most if most is not None and counts[most] * 2 > len(self.steps) else None

    @property
    def rows_per_step(self) -> float | None:
        """Mean rows of a step. None: no loader was observed."""
        data = self.train_data
        timed = self.steps[DROPPED_STEPS:] or self.steps
        rows = [dict(step.rows).get(data, 0) for step in timed] if data is not None else []
        return statistics.median(rows) if rows and any(rows) else None

    @property
    def seconds_per_step(self) -> float | None:
        """Median seconds of a step, without the first steps. None: too few steps."""
        ends = [step.at_s for step in self.steps[DROPPED_STEPS - 1 :]]
        seconds = [after - before for before, after in pairwise(ends)]
        return statistics.median(seconds) if seconds else None

    @property
    def wait_share(self) -> float:
        """Share of a step spent waiting for its batches."""
        timed, seconds = self.steps[DROPPED_STEPS:], self.seconds_per_step
        if not timed or not seconds:
            return 0.0
        return min(1.0, statistics.median(step.wait_s for step in timed) / seconds)

    @property
    def micro_batches(self) -> int:
        """Backward passes of most steps."""
        return max(1, round(statistics.median(step.backwards for step in self.steps))) if self.steps else 1


@dataclass
class Reports:
    """Reports of all processes of one run, by rank."""

    by_rank: dict[int, RankReport] = field(default_factory=dict)
    torch: str = ""
    """Version of torch in the command. Empty: no process has imported torch."""

    def add(self, message: Message) -> None:
        """Add the message of a process."""
        content = {name: value for name, value in message.items() if name not in ("rank", "process")}
        rank = message.get("rank")
        with contextlib.suppress(ValidationError):  # a process with overwritten memory may send anything
            report = RankReport.model_validate(content)
            if report.torch:
                self.torch = report.torch
            before = self.by_rank.get(rank) if isinstance(rank, int) else None
            # A launcher has rank 0, too, and makes no steps.
            is_more = before is None or len(report.steps) > len(before.steps) or (before.raised is None and not before.steps)
            if isinstance(rank, int) and is_more:
                self.by_rank[rank] = report

    @property
    def train_rows(self) -> int | None:
        """Size of the dataset that the training reads. None: unknown, such as that of a stream."""
        sizes = (dict(report.lengths).get(report.train_data or 0, 0) for report in self.trained.values())
        return max(sizes, default=0) or None

    @property
    def trained(self) -> dict[int, RankReport]:
        """Reports of the ranks that made a step."""
        return {rank: report for rank, report in self.by_rank.items() if report.steps}

    @property
    def world_size(self) -> int:
        """Ranks of the command."""
        return max((report.world_size for report in self.by_rank.values()), default=1)

    @property
    def is_complete(self) -> bool:
        """True if every rank has made the requested steps."""
        done = sum(report.ended == "done" for report in self.by_rank.values())
        return done > 0 and done >= self.world_size

    @property
    def steps(self) -> int:
        """Steps that every rank has made."""
        return min((len(report.steps) for report in self.trained.values()), default=0)

    @property
    def rows_per_step(self) -> float | None:
        """Rows of all ranks in one step. None: no loader was observed."""
        rows = [report.rows_per_step for report in self.trained.values()]
        known = [value for value in rows if value is not None]
        return sum(known) if known else None

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds of a step of the slowest rank."""
        return max((seconds for report in self.trained.values() if (seconds := report.seconds_per_step)), default=None)

    @property
    def raised(self) -> Raised | None:
        """The exception that ended a rank. None: none was reported."""
        errors = [
            Raised(chain=report.raised.chain, traceback="", phase="measure")
            for _, report in sorted(self.by_rank.items())
            if report.raised is not None and report.raised.chain
        ]
        # A lack of memory in one rank makes the others fail, too, with errors of the connection.
        return next((error for error in errors if memory_error(error) is not None), errors[0] if errors else None)
