"""A worker as a process: `python -m batchcal.hpo.workers.process`, started and controlled by a `WorkerPool`.

stdin has a line with its `Assignment`, then `finish` (stop after the running trial) or `stop` (now). When stdin ends, the
`WorkerPool` has ended, and the worker ends. stdout has a JSON line for each event, and one for the error that ended the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final, TextIO

from batchcal.core.errors import BatchcalError, Interrupted, NotSaved
from batchcal.core.progress import Notice
from batchcal.core.signals import raised_as_interrupted
from batchcal.detect.detect import detect_for
from batchcal.detect.environment import Environment
from batchcal.hpo.blueprint import Assignment
from batchcal.hpo.shapes import ShapeBook
from batchcal.hpo.study import NO_ROOM, open_study
from batchcal.hpo.trials.trial import TrialRunner
from batchcal.hpo.workers.worker import Worker
from batchcal.machine.meters import read_status
from batchcal.measure.children.launchers import Launchers
from batchcal.values.study_events import AcceleratorFound, WorkerEvent, written

FINISH: Final = "finish"
STOP: Final = "stop"


class Line:
    """Connection to the `WorkerPool`: one JSON line per message. Messages are dropped if the pool no longer reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def event(self, event: WorkerEvent, /) -> None:
        name, values = written(event)
        self.send({"event": name, "values": values})

    def error(self, error: BatchcalError) -> None:
        self.send({"error": {"name": type(error).__name__, "what": error.what, "known": error.known, "try": error.try_}})

    def send(self, message: object) -> None:
        # Another thread judges a trial's epochs and reports them.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()


def main() -> int:
    """Run the worker's assignment. Return the exit code."""
    # All other output goes to stderr, which is the worker's log: stdout has our messages only.
    line = Line(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    finish = threading.Event()
    try:
        with raised_as_interrupted():
            assignment = Assignment.model_validate_json(sys.stdin.readline())
            threading.Thread(target=_obey, args=(finish,), name="batchcal-orders", daemon=True).start()
            work(assignment, line, finish)
    except Interrupted as error:
        return 128 + error.signal_number
    except BatchcalError as error:
        line.error(error)
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        line.error(_not_written(error))
        return 1
    return 0


def _not_written(error: OSError) -> NotSaved:
    """Return the error for a disk that is full or read-only. Another worker would fail, too."""
    return NotSaved(
        f"the study cannot continue: {error.strerror or error}",
        known=f"at {error.filename}" if error.filename else "trials that have ended are saved",
        try_="free disk space or allow writing there, then run the same command again",
    )


def work(assignment: Assignment, line: Line, finish: threading.Event) -> None:
    """Work at the study of `assignment` until it is done or `finish` is set."""
    blueprint, options = assignment.blueprint, assignment.measure
    if assignment.cpus:
        os.sched_setaffinity(0, assignment.cpus)
    study, why = open_study(blueprint)
    if why and assignment.index == 0:
        line.event(Notice(why))
    environment = with_own_memory(detect_for(options.device))
    for accelerator in environment.accelerators:
        line.event(
            AcceleratorFound(
                device=f"{accelerator.kind}:{accelerator.index}",
                name=accelerator.name,
                total_bytes=accelerator.total_bytes,
                available_bytes=accelerator.free_bytes,
                used_bytes=accelerator.total_bytes - accelerator.free_bytes,
            )
        )
    launchers = Launchers(os.environ, note=lambda text: line.event(Notice(text)), spawn_only=False)
    book = ShapeBook(
        blueprint.reference,
        options,
        environment,
        blueprint.folder / "shapes",
        most_trained=blueprint.most_trained,
        launchers=launchers,
        neighbours=assignment.neighbours,
        budget_parameters=blueprint.settings.budget,
        progress=line,
    )
    try:
        Worker(
            study=study,
            settings=blueprint.settings,
            space=blueprint.space,
            book=book,
            runner=TrialRunner(launchers),
            options=blueprint.options,
            effective_batch=blueprint.effective_batch,
            presences=blueprint.presences,
            progress=line,
            finish=finish.is_set,
        ).work()
    finally:
        launchers.close()


def with_own_memory(environment: Environment) -> Environment:
    """Return the environment as a trial finds it: with this process, which continues to run beside it."""
    own, memory = read_status(), environment.memory
    own_bytes = 0 if own is None else own.hard_bytes
    # A budget subtracts the measuring process from the used memory. This process stays beside the trial, so add it here.
    return environment.model_copy(update={"memory": memory.model_copy(update={"used_bytes": memory.used_bytes + own_bytes})})


def _obey(finish: threading.Event) -> None:
    for order in sys.stdin:
        if order.strip() != FINISH:
            break
        finish.set()
    # The signal raises in the main thread, wherever that is.
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    raise SystemExit(main())
