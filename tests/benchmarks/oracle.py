"""Independent brute force: the largest batch that a plain training survives within a budget, in fresh processes and real cgroups.

None of batchcal's engine is used: each trial is tests/benchmarks/plain_training.py in a memory cgroup of its own.

    python -m tests.benchmarks.oracle configs/handwriting.toml --limit 1GiB --budget 800MiB               # bisect
    python -m tests.benchmarks.oracle configs/handwriting.toml --limit 1GiB --budget 800MiB --answer 512  # check an answer
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Final

from batchcal.core.units import parse_size
from tests.benchmarks._limits import Ended, python, run_limited
from tests.benchmarks._report import MIB, finish, say

CLOSE: Final = 0.93
"""An answer is good when no batch of answer / 0.93 stays within the budget in five of five runs."""
IN_A_ROW: Final = 5
PASSIVE: Final = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait do not spin: trials ask for memory, and what else runs on the machine must not make them take for ever."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One plain training at one batch size."""

    batch: int
    eval_batch: int
    survived: bool
    """It ran to its end and the kernel killed nothing."""
    demand_bytes: int | None
    """Anonymous + shared, most at once, as the process itself and the group's counters saw it. None: it did not live to tell."""
    oom_kills: int
    wall_s: float
    step_s: float | None
    detail: str

    def within(self, budget_bytes: int) -> bool:
        return self.survived and self.demand_bytes is not None and self.demand_bytes <= budget_bytes


@dataclasses.dataclass(frozen=True)
class Training:
    """What every trial of one question has in common."""

    config: str
    limit_bytes: int
    steps: int = 12
    threads: int | None = None
    timeout_s: float = 900.0

    def trial(self, batch: int, *, eval_batch: int | None = None) -> Trial:
        options = ["--batch", str(batch), "--steps", str(self.steps)]
        options += [] if eval_batch is None else ["--eval-batch", str(eval_batch)]
        options += [] if self.threads is None else ["--threads", str(self.threads)]
        command = python("-m", "tests.benchmarks.plain_training", self.config, *options)
        ended = run_limited(command, limit_bytes=self.limit_bytes, timeout_s=self.timeout_s, environment=PASSIVE)
        told = _told(ended)
        demand, step_s = told.get("demand_bytes"), told.get("step_s")
        # The process sees its own pages, the group also those of its children. Both are floors of the truth.
        known = max(int(demand), ended.group_peak_bytes) if isinstance(demand, int) else None
        return Trial(
            batch=batch,
            eval_batch=batch if eval_batch is None else eval_batch,
            survived=ended.survived,
            demand_bytes=known,
            oom_kills=ended.oom_kills,
            wall_s=ended.wall_s,
            step_s=float(step_s) if isinstance(step_s, int | float) else None,
            detail="" if ended.survived else f"exit {ended.exit_code}: {ended.stderr.strip().splitlines()[-1:] or ['no word']}",
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is right: it survives, and not much more would."""

    answer: int
    beyond: int
    """answer / 0.93, rounded up: what must not stay within the budget every time."""
    survived: int
    of: int
    within_budget: int
    beyond_exceeded: bool | None
    """One of up to five runs at `beyond` did not stay within the budget. None: not asked, memory did not end the search."""
    beyond_runs: int
    peak_bytes: int | None
    """Highest demand seen at the answer."""

    @property
    def right(self) -> bool:
        return self.survived == self.of and self.beyond_exceeded is not False


def largest_within(
    trial: Callable[[int], Trial], budget_bytes: int, *, low: int = 0, high: int = 1, runs: int = IN_A_ROW
) -> tuple[int, list[Trial]]:
    """The largest batch within the budget in `runs` of `runs`, by doubling and bisection; 0: none.

    `low` is taken as known to fit. A batch that once does not stay within is out: the answer is what holds every time.
    """
    seen: list[Trial] = []

    def holds(batch: int) -> bool:
        for _ in range(runs):
            seen.append(trial(batch))
            say(f"  {batch}: {describe(seen[-1], budget_bytes)}")
            if not seen[-1].within(budget_bytes):
                return False
        return True

    high = max(high, low + 1)
    while holds(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, seen


def check_answer(
    trial: Callable[[int, int | None], Trial],
    budget_bytes: int,
    answer: int,
    *,
    runs: int,
    eval_batch: int | None = None,
    ask_beyond: bool = True,
) -> Verdict:
    """`runs` trainings at the answer, which must all survive, and up to five at answer / 0.93, one of which must not fit."""
    at_answer = []
    for _ in range(runs):
        at_answer.append(trial(answer, eval_batch))
        say(f"  answer {answer}: {describe(at_answer[-1], budget_bytes)}")
    beyond = max(answer + 1, math.ceil(answer / CLOSE))
    exceeded: bool | None = None
    beyond_runs = 0
    while ask_beyond and beyond_runs < IN_A_ROW and not exceeded:
        tried = trial(beyond, None)
        beyond_runs += 1
        exceeded = not tried.within(budget_bytes)
        say(f"  beyond {beyond}: {describe(tried, budget_bytes)}")
    return Verdict(
        answer=answer,
        beyond=beyond,
        survived=sum(tried.survived for tried in at_answer),
        of=runs,
        within_budget=sum(tried.within(budget_bytes) for tried in at_answer),
        beyond_exceeded=exceeded,
        beyond_runs=beyond_runs,
        peak_bytes=max((tried.demand_bytes for tried in at_answer if tried.demand_bytes is not None), default=None),
    )


def describe(trial: Trial, budget_bytes: int) -> str:
    if not trial.survived:
        return f"did not survive ({trial.oom_kills} kernel kills, {trial.detail})"
    assert trial.demand_bytes is not None
    share = trial.demand_bytes / budget_bytes
    return f"{trial.demand_bytes / MIB:.0f} MiB, {share:.1%} of the budget, {trial.wall_s:.1f} s"


def _told(ended: Ended) -> dict[str, object]:
    """The JSON line of plain_training; nothing where it did not get there."""
    lines = ended.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--limit", required=True, help="of the cgroup, such as 1GiB")
    parser.add_argument("--budget", required=True, help="bytes that the training may use, such as 870MiB or 912680550B")
    parser.add_argument("--answer", type=int, help="check this batch; without it the largest is searched for")
    parser.add_argument("--eval-batch", type=int)
    parser.add_argument("--runs", type=int, help="at the answer; default 20 up to 1 GiB, else 5")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    limit, budget = parse_size(arguments.limit, name="limit"), parse_size(arguments.budget, name="budget")
    training = Training(arguments.config, limit, steps=arguments.steps, threads=arguments.threads)

    if arguments.answer is None:
        largest, trials = largest_within(training.trial, budget)
        finish("oracle", [dataclasses.asdict(one) for one in trials], {"largest": largest, "limit": limit, "budget": budget})
        return
    runs = arguments.runs or runs_at(limit)
    verdict = check_answer(
        lambda batch, eval_batch: training.trial(batch, eval_batch=eval_batch),
        budget,
        arguments.answer,
        runs=runs,
        eval_batch=arguments.eval_batch,
    )
    finish("oracle", [dataclasses.asdict(verdict)], {"right": verdict.right, "limit": limit, "budget": budget})


def runs_at(limit_bytes: int) -> int:
    """Twenty survivals up to 1 GiB, five above: the smaller the limit, the larger the part that varies."""
    return 20 if limit_bytes <= 1024**3 else 5


def steps_at(limit_bytes: int) -> int:
    """Steps of a plain training. Above 2 GiB fewer: nearly all blocks are mapped one by one there, and peaks stand still."""
    return 12 if limit_bytes <= 2 * 1024**3 else 6


if __name__ == "__main__":
    main()
