"""What control and monitoring cost: the loop as it is shipped against bare optimizer steps, and every hook timed by itself.

Interleaved: a turn of one, a turn of the other, in one process, on the same model and the same shuffled samples; the ratio is the
median over pairs, `give` about how far it may be off by chance: half the distance of its quartiles over the root of their number.
Beside it the hooks' own time: all that the control does around a pass (prediction, peak, recovery, decisions),
before the update, between groups, the learning rate, the log on disk; and the memory monitor's thread by its cost a reading.

    python -m tests.benchmarks.control_overhead
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from unittest import mock

import torch

from batchcal.core.clock import SystemClock
from batchcal.core.progress import Silent
from batchcal.runtime.accumulate import groups
from batchcal.runtime.group import Passes
from batchcal.runtime.loader import make_loader
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.loop import optimizer_steps
from batchcal.train.memory.monitor import INTERVAL_S
from batchcal.train.options import TrainOptions
from batchcal.train.report.monitor import TrainingMonitor
from batchcal.train.training_setup import TrainingSetup, make_setup
from batchcal.workload.spec.load import load_task
from tests.benchmarks._limits import ROOT
from tests.benchmarks._reference import reference_of
from tests.benchmarks._report import finish, paired_ratio, say
from tests.support.plans import a_plan

P = ParamSpec("P")
R = TypeVar("R")

TASKS: Final = {"handwriting": 64, "textpair": 64, "patchtst": 64, "multiimage": 32}
"""With the micro-batch that is usual for it."""
IN_A_STEP: Final = 4
"""Micro-batches."""
WARM_UP: Final = 3
READINGS: Final = 2_000


class Stopwatch:
    """Sums what wrapped functions took."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def around(self, function: Callable[P, R], sign: float = 1.0) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent_s += sign * (time.perf_counter() - began)

        return timed


def course_of(name: str, micro_batch: int, log: Path) -> tuple[TrainingSetup, TrainingMonitor]:
    torch.manual_seed(0)
    task = load_task(reference_of(str(ROOT / "configs" / f"{name}.toml")), device="cpu")
    monitor = TrainingMonitor(log, view=Silent())
    setup = make_setup(
        task,
        a_plan(*[micro_batch] * IN_A_STEP, intra_op_threads=torch.get_num_threads()),
        TrainOptions(epochs=1_000),
        checkpoint=None,
        resume=False,
        predictor=None,
        progress=monitor,
        clock=SystemClock(),
    )
    monitor.event(setup.started(a_plan(*[micro_batch] * IN_A_STEP)))
    return setup, monitor


def bare(setup: TrainingSetup, micro_batch: int) -> Iterator[None]:
    """Gradient accumulation as it is written by hand."""
    task = setup.task
    loader = make_loader(a_plan(*[micro_batch] * IN_A_STEP), task.train_data, collate_fn=task.collate_fn)
    while True:
        for group in groups(loader):
            total = 0.0
            for one in group.micro_batches:
                loss = task.loss(task.model, one.batch)
                (loss / IN_A_STEP).backward()
                total += loss.item()
            task.optimizer.step()
            task.optimizer.zero_grad()
            yield


def shipped(setup: TrainingSetup) -> Iterator[None]:
    standing = setup.first
    while True:
        for _ in optimizer_steps(setup, standing, StopRequest()):
            yield


def turn_s(steps: Iterator[None], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - began) / count


def reading_s(setup: TrainingSetup) -> float:
    began = time.perf_counter()
    for _ in range(READINGS):
        setup.control.monitor.read()
    return (time.perf_counter() - began) / READINGS


def _give(ratios: list[float]) -> float:
    first, _, third = statistics.quantiles(ratios, n=4)
    return (third - first) / 2 / math.sqrt(len(ratios))


def measured(name: str, micro_batch: int, pairs: int, count: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        setup, monitor = course_of(name, micro_batch, Path(folder) / "run.jsonl")
        stack.enter_context(monitor)
        stack.enter_context(setup.control.monitor)
        one, other = shipped(setup), bare(setup, micro_batch)
        turn_s(one, WARM_UP), turn_s(other, WARM_UP)
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(pairs):
            # Who comes first changes: what a turn leaves in the caches meets both.
            for is_ours in (True, False) if number % 2 else (False, True):
                (ours if is_ours else theirs).append(turn_s(one if is_ours else other, count))
        watch = Stopwatch()
        control = setup.control
        for whose, hook in (
            (control, "run"),
            (control, "before_update"),
            (control, "begin_group"),
            (control, "at"),
            (control, "take_memory"),
            (setup.rate, "set"),
            (monitor, "event"),
        ):
            stack.enter_context(mock.patch.object(whose, hook, watch.around(getattr(whose, hook))))
        inner = watch.around(Passes.run, -1.0)
        stack.enter_context(mock.patch.object(Passes, "run", inner))
        steps = pairs * count
        hooked_s = turn_s(one, steps)
        step_s = statistics.median(theirs)
        return {
            "task": name,
            "micro_batch": micro_batch,
            "step_ms": round(1e3 * step_s, 2),
            "hooks_us": round(1e6 * watch.spent_s / steps, 1),
            "hooks_share": round(watch.spent_s / steps / hooked_s, 5),
            "monitor_share": round(reading_s(setup) / INTERVAL_S, 5),
            "interleaved": round(paired_ratio(ours, theirs), 4),
            "give": round(_give([one / other for one, other in zip(ours, theirs, strict=True)]), 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, object]] = []
    for name in arguments.tasks.split(","):
        rows.append(measured(name, TASKS[name], arguments.pairs, arguments.steps))
        say(str(rows[-1]))
    finish("control_overhead", rows, {"worst_hooks_share": max(float(str(row["hooks_share"])) for row in rows)})


if __name__ == "__main__":
    main()
