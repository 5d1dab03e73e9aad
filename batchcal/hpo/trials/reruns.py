"""Rules for trials: which ones count, and which ones run again because their worker died or they were stopped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from batchcal.hpo.storage.presence import has_ended, sweep

RETRIES: Final = 4
"""Most reruns of a trial whose worker died. The trial hardly ever kills its worker, because it runs in a child process. Machines
that may be taken away at any time do."""
WORKER: Final = "batchcal_worker"
"""User attribute of a trial: the identity of its worker."""
AGAIN: Final = "batchcal_again"
"""User attribute of a trial: the number of the trial that it runs again."""
STOPPED: Final = "batchcal_stopped"
"""User attribute of a trial: it was stopped for a reason other than the trial itself."""
NAMELESS: Final = timedelta(seconds=60)
"""A trial that runs for this long without a recorded worker is lost. By the clock of this machine, so only in a journal."""
SURPLUS: Final = "batchcal_surplus"
"""User attribute of a trial: it began while another worker began the last trial. It does not belong to the study."""


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials of the study that ended or run, each once, however often it had to run."""
    return [
        trial
        for trial in trials
        if trial.state is not TrialState.WAITING and AGAIN not in trial.user_attrs and not is_surplus(trial)
    ]


def to_be_run(trials: Sequence[FrozenTrial], wanted: int) -> bool:
    """Return True if there is a trial to begin: fewer than `wanted` were begun, or one waits to run again."""
    return len(counted(trials)) < wanted or any(trial.state is TrialState.WAITING for trial in trials)


def is_surplus(trial: FrozenTrial) -> bool:
    """Return True if `trial` does not belong to the study."""
    return SURPLUS in trial.user_attrs


def original_of(trial: FrozenTrial) -> int:
    """Return the number of the trial that `trial` runs again, or its own number if it is not a rerun."""
    original: object = trial.user_attrs.get(AGAIN)
    return original if isinstance(original, int) else trial.number


def came_too_late(trials: Sequence[FrozenTrial], number: int, wanted: int) -> bool:
    """Return True if `wanted` trials were begun before `number`, which is not a rerun. All workers get the same result."""
    return sum(trial.number < number for trial in counted(trials)) >= wanted


def run_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue `trial` with the values it had. Do nothing if its workers have died too often, or if it was queued since."""
    original = original_of(trial)
    runs = [run for run in study.get_trials(deepcopy=False) if original_of(run) == original]
    faults = sum(run.state is TrialState.FAIL and STOPPED not in run.user_attrs for run in runs)
    # A worker that was wrongly taken for dead may find that another one has run the trial since.
    if faults <= RETRIES and all(run.state is TrialState.FAIL for run in runs if run.number > trial.number):
        study.enqueue_trial(trial.params, user_attrs={AGAIN: original})


def retry_lost(study: optuna.Study, presences: Path | None = None) -> tuple[int, ...]:
    """Fail the trials of dead workers and queue each to run again. Return their numbers.

    In storages without heartbeats, these trials would stay in the running state forever. In storages with heartbeats, this is
    faster than waiting for them. If this process cannot check a worker, its trials are left to the heartbeats.

    Args:
        presences: folder of the workers' locks. None: they have none.
    """
    lost: list[int] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_lost(trial, presences):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):  # another worker has failed it, too
            continue
        run_again(study, study.get_trials(deepcopy=False)[trial.number])
        lost.append(trial.number)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    sweep(presences, (str(active.user_attrs.get(WORKER)) for active in running))
    return tuple(lost)


def _is_lost(trial: FrozenTrial, presences: Path | None) -> bool:
    worker: object = trial.user_attrs.get(WORKER)
    if isinstance(worker, str):
        return has_ended(worker, presences)
    # A worker first records its identity in the trial.
    start = trial.datetime_start if presences is not None else None
    return start is not None and datetime.now() - start > NAMELESS
