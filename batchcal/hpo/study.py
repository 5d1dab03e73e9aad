"""A study in its storage: begun, joined or read. A worker can only join it with the settings it was begun with."""

from __future__ import annotations

import errno
import hashlib
import warnings
from typing import Final

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from batchcal.core.canonical import JSON
from batchcal.core.errors import BatchcalError, NotSaved, UsageError
from batchcal.core.units import count_of
from batchcal.hpo.blueprint import Blueprint, check_same
from batchcal.hpo.search.pruner import make_pruner
from batchcal.hpo.storage.backend import open_storage, without_password

STARTED: Final = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""States of trials that are of value to a study."""
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
IDENTITY: Final = "batchcal"
"""User attribute of a study: the settings it was begun with."""
PROMISED: Final = "batchcal_promised"
"""User attribute of a study: the number of trials and the largest resource that one trial reports, as last requested."""


def open_study(blueprint: Blueprint) -> tuple[optuna.Study, str]:
    """Open the study, or begin it if it does not exist. Return it and a sentence on the decision about its pruner.

    Raises:
        UsageError: the storage cannot be used, or the existing study has other settings.
        NotSaved: the storage cannot be written to.
    """
    be_quiet()
    settings = blueprint.settings
    pruner, why = make_pruner(settings.pruner, resource=blueprint.resource, trials=settings.trials, folds=settings.folds)
    storage = open_storage(blueprint.storage)
    try:
        study = optuna.create_study(
            study_name=settings.study,
            storage=storage,
            direction=settings.direction,
            pruner=pruner,
            load_if_exists=True,
        )
        stored_identity = study.user_attrs.get(IDENTITY)
        trials = study.get_trials(deepcopy=False)
    except BatchcalError:  # includes signals
        raise
    except Exception as error:
        raise _unusable(blueprint, error) from error
    nothing_ran = not any(trial.state in STARTED for trial in trials)
    if stored_identity is not None and trials and nothing_ran and table_of(stored_identity) != blueprint.identity():
        # The config was corrected, perhaps in its space. The study keeps its name.
        optuna.delete_study(study_name=settings.study, storage=storage)
        return open_study(blueprint)
    if stored_identity is None and trials:
        raise UsageError(
            f"study {settings.study!r} exists, and batchcal did not create it",
            known=f"it has {count_of(len(trials), 'trial')} with unknown settings, so new trials could not be compared with them",
            try_=f'--set study="{settings.study}-2" for a new study',
        )
    stored, current = table_of(stored_identity), blueprint.identity()
    if trials:
        check_same(settings.study, stored, current)
    try:
        if stored != current:
            study.set_user_attr(IDENTITY, current)
        promised = {"trials": settings.trials, "resource": blueprint.resource}
        if study.user_attrs.get(PROMISED) != promised:
            study.set_user_attr(PROMISED, promised)
    except BatchcalError:
        raise
    except Exception as error:
        raise _unusable(blueprint, error) from error
    return study, why


def read_study(storage: str, name: str | None = None, *, config: str = "CONFIG") -> optuna.Study:
    """Open a study to read it. Without a name: the only study in the storage.

    Args:
        config: the config file of the study, for the error.

    Raises:
        UsageError: there is no such study, or there are several and no name was given.
    """
    be_quiet()
    backend = open_storage(storage, make=False, config=config)
    try:
        names = optuna.get_all_study_names(backend)
        if name is None and len(names) == 1:
            name = names[0]
        if name is not None and name in names:
            return optuna.load_study(study_name=name, storage=backend)
    except BatchcalError:
        raise
    except Exception as error:
        raise UsageError(f"{without_password(storage)} cannot be read as a study", known=_first_line(error)) from error
    listed = ", ".join(sorted(names)[:8])
    several = name is None and bool(names)
    raise UsageError(
        "the storage has several studies" if several else "there is no study" + (f" {name!r}" if name else ""),
        known=f"studies in the storage: {listed}" if names else "the storage has no studies",
        try_=f"batchcal show {config}    shows its study" if several else f"batchcal hpo run {config}    starts the study",
    )


def be_quiet() -> None:
    """Silence Optuna, which logs each trial and warns about experimental features. batchcal reports them itself."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)


def make_sampler(seed: int, number: int) -> BaseSampler:
    """Return the sampler for trial `number`."""
    return TPESampler(seed=int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big"))


def table_of(value: object) -> dict[str, JSON]:
    """Return a user attribute that is a table, or an empty table if it is not."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _unusable(blueprint: Blueprint, error: Exception) -> BatchcalError:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return NotSaved(
            f"study {blueprint.settings.study!r} cannot be saved: {error.strerror}",
            known=f"its storage is {blueprint.shown_storage}; trials that have ended are saved",
            try_="free disk space or allow writing there, then run the same command again",
        )
    return UsageError(
        f"the storage of study {blueprint.settings.study!r} cannot be used",
        known=_first_line(error),
        try_="the URL of a running database, or another file",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
