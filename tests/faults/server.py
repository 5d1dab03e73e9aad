"""Measures what it is asked to, line by line: `python -m tests.faults.server`, started where a limit or a fault is in force.

One zygote serves all requests, as in a calibration. Nothing but replies is printed.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Calibration, Mode
from batchcal.core.errors import BatchcalError, exit_code_of
from batchcal.core.units import MIB
from batchcal.core.values import Frozen
from batchcal.detect.detect import detect
from batchcal.detect.environment import Environment
from batchcal.guard import launch
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.capacity.attempts import SearchTarget
from batchcal.measure.children import runner
from batchcal.measure.children.child_probe import ChildProbe
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.children.probe import Examination, Observation, ProbeRequest
from batchcal.measure.children.setting import ChildSetting
from batchcal.measure.obtain import obtain
from batchcal.measure.options import options
from batchcal.measure.outcomes import OVER_BUDGET_LEAST
from batchcal.measure.result import Need
from batchcal.workload.spec.reference import Scalar, TaskReference

MARGIN: Final = 0.15
UNLIMITED: Final = 700 * MIB
"""A child with torch holds some 200 MiB of it."""


class Ask(Frozen):
    """One request. `output` makes it a calibration, `batch` a probe; neither: an examination."""

    spec: str
    directory: str
    arguments: dict[str, Scalar] = {}
    batch: int | None = None
    mode: Mode = "train"
    workers: int = 0
    threads: int = 1
    samples: int = 4
    deadline_s: float = 30.0
    budget_bytes: int = 0
    """0: what the limit leaves, less the margin; UNLIMITED where no group limits."""
    output: str = ""
    max_probes: int | None = None
    max_batch: int | None = None
    time_limit_s: float = 60.0


class Failed(Frozen):
    """An error on its way to the test."""

    type: str
    exit_code: int
    what: str
    known: str
    try_: str


class Reply(Frozen):
    report: Observation | None = None
    examination: Examination | None = None
    calibration: Calibration | None = None
    failed: Failed | None = None


class KeptProbe(ChildProbe):
    """Shares its launchers with the probes before and after it."""

    def __init__(self, setting: ChildSetting, group: GroupMeter, budget_bytes: int, launchers: Launchers) -> None:
        super().__init__({"cpu": setting}, group, host_budget_bytes=budget_bytes, note=self.noted, launchers=launchers)

    def noted(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")

    def close(self) -> None:
        """Later."""


def answer(ask: Ask, environment: Environment, launchers: Launchers) -> Reply:
    reference = TaskReference(spec=ask.spec, directory=ask.directory, arguments=ask.arguments)
    setting = ChildSetting(
        reference=reference,
        device="cpu",
        seed=0,
        intra_op_threads=ask.threads,
        smallest_batch=2,
    )
    with closing(memory_meter()) as meter:
        room = UNLIMITED if meter.version == "none" else int(meter.limit_bytes * (1 - MARGIN))
        budget = ask.budget_bytes or room
        probe = KeptProbe(setting, meter, budget, launchers)
        if ask.output:
            chosen = options(
                environment.memory.limit.value,
                memory_limit_bytes=None,
                max_batch=ask.max_batch,
                max_probes=ask.max_probes,
                time_limit_s=ask.time_limit_s,
                allocator="default",
                workers=ask.workers,
                device="cpu",
                objective="memory",
            )
            made = obtain(reference, chosen, Need(), environment=environment, output=Path(ask.output), probe=probe)
            return Reply(calibration=made.calibration)
        if ask.batch is None:
            return Reply(examination=probe.examine("cpu", "default", budget, 3.0))
        target = SearchTarget(
            "cpu", "default", ask.mode, budget, ask.samples, num_workers=ask.workers, intra_op_threads=ask.threads
        )
        request = ProbeRequest(
            setup=target.setup(ask.batch),
            mode=ask.mode,
            samples=ask.samples,
            train_steps=0,
            allowed_bytes=budget + OVER_BUDGET_LEAST,
            budget_bytes=budget,
            deadline_s=ask.deadline_s,
        )
        return Reply(report=probe.measure(request))


def main() -> None:
    """LAB_BALLAST_MIB: what this process holds itself; LAB_LOAD_LIMIT_S: the deadline of loading, else minutes;
    LAB_START_LIMIT_S: how long a zygote may take to fork."""
    if "LAB_LOAD_LIMIT_S" in os.environ:
        vars(runner)["LOAD_LIMIT_S"] = float(os.environ["LAB_LOAD_LIMIT_S"])
    if "LAB_START_LIMIT_S" in os.environ:
        vars(launch)["START_LIMIT_S"] = float(os.environ["LAB_START_LIMIT_S"])
    ballast = b"x" * (int(os.environ.get("LAB_BALLAST_MIB", "0")) * MIB)
    environment = detect()
    launchers = Launchers(os.environ, note=lambda text: print(text, file=sys.stderr), spawn_only=False)
    try:
        for line in sys.stdin:
            try:
                reply = answer(Ask.model_validate_json(line), environment, launchers)
            except BatchcalError as error:
                failed = Failed(
                    type=type(error).__name__, exit_code=exit_code_of(error), what=error.what, known=error.known, try_=error.try_
                )
                reply = Reply(failed=failed)
            print(reply.model_dump_json(), flush=True)
    finally:
        launchers.close()
        del ballast


if __name__ == "__main__":
    main()
