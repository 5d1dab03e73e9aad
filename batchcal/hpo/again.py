"""Which trials count, and which are run once more: those whose worker died, and those that somebody stopped."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

RETRIES: Final = 2
"""Of a trial whose worker died: it may be what kills them."""
WORKER: Final = "batchcal_worker"
"""User attribute of a trial: who runs it."""
AGAIN: Final = "batchcal_again"
"""User attribute of a trial: the number of the one that it runs once more."""
STOPPED: Final = "batchcal_stopped"
"""User attribute of a trial: somebody stopped it, for no fault of its own."""
NAMELESS: Final = timedelta(seconds=60)
"""A trial that runs for so long without a word of who runs it is lost."""
SURPLUS: Final = "batchcal_surplus"
"""User attribute of a trial: it was begun by a worker while another began the last one; it is none of the study."""


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials of the study: those that ended or run, each once however often it had to be run."""
    return [one for one in trials if one.state is not TrialState.WAITING and AGAIN not in one.user_attrs and not is_surplus(one)]


def to_be_run(trials: Sequence[FrozenTrial], wanted: int) -> bool:
    """Whether there is a trial to begin: fewer than `wanted` were, or one waits to be run again."""
    return len(counted(trials)) < wanted or any(one.state is TrialState.WAITING for one in trials)


def is_surplus(trial: FrozenTrial) -> bool:
    """Whether it is none of the study."""
    return SURPLUS in trial.user_attrs


def original_of(trial: FrozenTrial) -> int:
    """The number of the trial that `trial` runs once more; its own where it does not."""
    original: object = trial.user_attrs.get(AGAIN)
    return original if isinstance(original, int) else trial.number


def came_too_late(trials: Sequence[FrozenTrial], number: int, wanted: int) -> bool:
    """Whether `wanted` trials were begun before `number`, which is no other's second run. All workers judge alike."""
    return sum(one.number < number for one in counted(trials)) >= wanted


def run_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues `trial`, with the values it had; not where its workers have died too often."""
    original = original_of(trial)
    runs = [one for one in study.get_trials(deepcopy=False) if original_of(one) == original]
    faults = sum(one.state is TrialState.FAIL and STOPPED not in one.user_attrs for one in runs)
    if faults <= RETRIES and not any(one.state is TrialState.WAITING for one in runs):
        study.enqueue_trial(trial.params, user_attrs={AGAIN: original})


def retry_lost(study: optuna.Study) -> tuple[int, ...]:
    """Fails the trials of this machine's dead workers, and queues each to be run again. Returns their numbers.

    For storages without heartbeats, whose trials would run for ever; and at once where there are some. Trials of other machines
    are left to those: nobody here can tell.
    """
    lost: list[int] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_lost(trial):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):  # another worker has seen it, too
            continue
        run_again(study, study.get_trials(deepcopy=False)[trial.number])
        lost.append(trial.number)
    return tuple(lost)


def _is_lost(trial: FrozenTrial) -> bool:
    worker: object = trial.user_attrs.get(WORKER)
    if isinstance(worker, str):
        return _is_dead(worker)
    # A worker says who it is as the first thing it does.
    began = trial.datetime_start
    return began is not None and datetime.now() - began > NAMELESS


def identity() -> str:
    """This process among all there ever were on all machines: host, boot, space of pids, pid, start."""
    return ":".join([socket.gethostname(), *_here(), str(os.getpid()), _start_of(os.getpid())])


def _is_dead(worker: str) -> bool:
    """Whether its process is gone. False where nobody here can tell: it is of another machine, or another container."""
    host, boot, space, pid, began = (worker.rsplit(":", 4) + [""] * 5)[:5]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if boot != _here()[0]:
        return True
    return space == _here()[1] and _start_of(int(pid)) != began


def _here() -> tuple[str, str]:
    """This boot of the machine, and the space in which our pids mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
        return boot, str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return f"{psutil.boot_time():.0f}", ""


def _start_of(pid: int) -> str:
    """When process `pid` began, in ticks that no change of the clock moves. Empty: it is gone, if not reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        return "" if Path("/proc/self/stat").exists() else f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""
