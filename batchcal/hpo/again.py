"""Which trials count, and which are run once more: those whose worker died, and those that somebody stopped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from batchcal.hpo.presence import is_gone, sweep

RETRIES: Final = 4
"""Of a trial whose worker died. Hardly ever is it what kills them, since it runs in a child of its own: machines that may be
taken away at any time are."""
WORKER: Final = "batchcal_worker"
"""User attribute of a trial: who runs it."""
AGAIN: Final = "batchcal_again"
"""User attribute of a trial: the number of the one that it runs once more."""
STOPPED: Final = "batchcal_stopped"
"""User attribute of a trial: somebody stopped it, for no fault of its own."""
NAMELESS: Final = timedelta(seconds=60)
"""A trial that runs for so long without a word of who runs it is lost; by the clock of this machine, and so in a journal only."""
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
    """Queues `trial`, with the values it had; not where its workers have died too often, or where it was queued since."""
    original = original_of(trial)
    runs = [one for one in study.get_trials(deepcopy=False) if original_of(one) == original]
    faults = sum(one.state is TrialState.FAIL and STOPPED not in one.user_attrs for one in runs)
    # Who was taken for dead, and was not, may find that another has run it since.
    if faults <= RETRIES and all(one.state is TrialState.FAIL for one in runs if one.number > trial.number):
        study.enqueue_trial(trial.params, user_attrs={AGAIN: original})


def retry_lost(study: optuna.Study, presences: Path | None = None) -> tuple[int, ...]:
    """Fails the trials of dead workers, and queues each to be run again. Returns their numbers.

    For storages without heartbeats, whose trials would run for ever; and at once where there are some. Trials of workers of which
    nobody here can tell whether they live are left to those.

    Args:
        presences: folder of the workers' locks. None: they have none.
    """
    lost: list[int] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_lost(trial, presences):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):  # another worker has seen it, too
            continue
        run_again(study, study.get_trials(deepcopy=False)[trial.number])
        lost.append(trial.number)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    sweep(presences, (str(one.user_attrs.get(WORKER)) for one in running))
    return tuple(lost)


def _is_lost(trial: FrozenTrial, presences: Path | None) -> bool:
    worker: object = trial.user_attrs.get(WORKER)
    if isinstance(worker, str):
        return is_gone(worker, presences)
    # A worker says who it is as the first thing it does.
    began = trial.datetime_start if presences is not None else None
    return began is not None and datetime.now() - began > NAMELESS
