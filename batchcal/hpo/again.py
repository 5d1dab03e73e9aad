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


def came_too_late(trials: Sequence[FrozenTrial], number: int, wanted: int) -> bool:
    """Whether `wanted` trials were begun before `number`, which is no other's second run. All workers judge alike."""
    return sum(one.number < number for one in counted(trials)) >= wanted


def run_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues `trial`, with the values it had; not where its workers have died too often."""
    original: object = trial.user_attrs.get(AGAIN, trial.number)
    runs = [one for one in study.get_trials(deepcopy=False) if original in (one.number, one.user_attrs.get(AGAIN))]
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
    """This process among all there ever were on all machines: host, boot, pid, start."""
    return f"{socket.gethostname()}:{_boot()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def _is_dead(worker: str) -> bool:
    host, boot, pid, began = (worker.rsplit(":", 3) + [""] * 4)[:4]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if boot != _boot():
        return True
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or f"{process.create_time():.2f}" != began
    except psutil.NoSuchProcess:
        return True


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return f"{psutil.boot_time():.0f}"
