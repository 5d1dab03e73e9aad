"""View of a study for its status, the live table and the report."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from batchcal.hpo.search.space import EPOCHS
from batchcal.hpo.study import IDENTITY, PROMISED, table_of
from batchcal.hpo.trials.facts import DIVERGED, TrialFacts, facts_of
from batchcal.hpo.trials.reruns import AGAIN, STOPPED, is_surplus, original_of
from batchcal.workload.spec.reference import Scalar

State = Literal["waiting", "running", "complete", "pruned", "infeasible", "failed", "stopped", "lost"]
"""`lost`: its worker died. `stopped`: for a reason outside of the trial. Both run again, under another number."""
DONE: Final[tuple[State, ...]] = ("complete", "pruned", "infeasible", "failed")
"""States of trials that need not run again."""
RECENT: Final = 30
"""Number of latest trials from whose pace the remaining time is estimated."""


@dataclass(frozen=True)
class TrialStatus:
    """One trial."""

    number: int
    state: State
    value: float | None
    """Final value of a complete trial, else the latest reported value."""
    parameters: Mapping[str, Scalar]
    reached: tuple[tuple[int, float], ...]
    """(epochs, best value so far), ordered by epochs."""
    facts: TrialFacts
    began: datetime | None
    """Start in the time of the machine that ran it, without a time zone, as Optuna stores it."""
    ended: datetime | None
    again: int | None = None
    """Number of the trial that it runs again."""

    @property
    def epochs(self) -> int:
        """Epochs trained, over all folds."""
        return self.facts.epochs or (self.reached[-1][0] if self.reached else 0)

    @property
    def wall_s(self) -> float:
        """Seconds from start to end, including the calibration of its shape. 0: it has not ended."""
        return (self.ended - self.began).total_seconds() if self.began is not None and self.ended is not None else 0.0

    @property
    def prediction_error(self) -> float | None:
        """|measured / predicted - 1| of its memory. None: nothing was measured."""
        predicted, peak = self.facts.predicted_peak_bytes, self.facts.peak_bytes
        return abs(peak / predicted - 1) if predicted and peak else None


@dataclass(frozen=True)
class StudyStatus:
    """A study with all of its trials, at one moment."""

    name: str
    direction: Literal["minimize", "maximize"]
    metric: str
    wanted: int
    """Number of trials that the study is to have."""
    resource: int
    """Epochs of a trial that runs to its end."""
    trials: tuple[TrialStatus, ...]
    task: str = ""
    folds: int = 0

    @property
    def better(self) -> float:
        """-1 if a smaller value is better, else 1."""
        return -1.0 if self.direction == "minimize" else 1.0

    def counts(self) -> dict[State, int]:
        """Return the number of trials by state. Each run of a trial counts."""
        return dict(Counter(trial.state for trial in self.trials))

    @property
    def done(self) -> int:
        """Number of trials that need not run again."""
        return sum(trial.state in DONE for trial in self.trials)

    def best(self) -> TrialStatus | None:
        """Return the complete trial with the best value. None: none is complete."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        return max(complete, key=lambda trial: (self.better * _number(trial.value), -trial.number), default=None)

    def left_s(self) -> float | None:
        """Seconds until all trials have ended, at the pace of the latest. None: none has ended, or none runs."""
        ended = sorted((trial for trial in self.trials if trial.state in DONE and trial.ended is not None), key=_end)
        running = sum(trial.state == "running" for trial in self.trials)
        if not ended or not running:
            return None
        return statistics.fmean(trial.wall_s for trial in ended[-RECENT:]) * max(self.wanted - self.done, 0) / running

    def saved_epochs(self) -> int:
        """Number of epochs that pruned trials did not train."""
        return sum(self._untrained_epochs(trial) for trial in self._stopped_by_pruner())

    def saved_s(self) -> float:
        """Seconds that these epochs would have taken, each at the pace of its own trial."""
        timed = [(trial, trial.facts.wall_s or trial.wall_s) for trial in self._stopped_by_pruner() if trial.epochs]
        return sum(wall_s / trial.epochs * self._untrained_epochs(trial) for trial, wall_s in timed)

    def _stopped_by_pruner(self) -> list[TrialStatus]:
        """Trials that the pruner stopped. Not those whose loss is NaN or infinite: they ended by themselves."""
        return [trial for trial in self.trials if trial.state == "pruned" and trial.facts.kind != DIVERGED]

    def _untrained_epochs(self, trial: TrialStatus) -> int:
        """Number of epochs between the one at which the trial was stopped and its last."""
        own = trial.parameters.get(EPOCHS)
        most = self.resource if not isinstance(own, int) else own * max(1, self.folds)
        return max(most - trial.epochs, 0)

    def prediction_error(self) -> float | None:
        """Median prediction error of the complete trials whose memory was measured."""
        errors = [error for trial in self.trials if trial.state == "complete" and (error := trial.prediction_error) is not None]
        return statistics.median(errors) if errors else None

    def calibrations(self) -> int:
        """Number of shapes that were measured."""
        return sum(bool(trial.facts.shape_measured) for trial in self.trials)


def study_status(study: optuna.Study) -> StudyStatus:
    """Return the current state of the study."""
    identity, promised = table_of(study.user_attrs.get(IDENTITY)), table_of(study.user_attrs.get(PROMISED))
    trials = [trial for trial in study.get_trials(deepcopy=False) if not is_surplus(trial)]
    latest = {original_of(trial): trial.number for trial in trials}
    wanted, resource, metric = promised.get("trials"), promised.get("resource"), identity.get("metric")
    folds = identity.get("folds")
    longest = max((max(trial.intermediate_values, default=0) for trial in trials), default=0)
    return StudyStatus(
        name=study.study_name,
        direction="maximize" if study.direction is optuna.study.StudyDirection.MAXIMIZE else "minimize",
        metric=str(metric) if metric is not None else "value",
        wanted=wanted if isinstance(wanted, int) else len(trials),
        resource=resource if isinstance(resource, int) else longest,
        trials=tuple(_trial_status(trial, is_latest=latest[original_of(trial)] == trial.number) for trial in trials),
        task=str(identity.get("task", "")),
        folds=folds if isinstance(folds, int) else 0,
    )


def _trial_status(trial: FrozenTrial, *, is_latest: bool) -> TrialStatus:
    facts, again = facts_of(trial), trial.user_attrs.get(AGAIN)
    state = _state(trial, facts)
    if state == "lost" and is_latest:
        state, facts = "failed", facts.model_copy(update={"kind": "worker-died", "why": "every worker that ran it died"})
    reached = tuple(sorted(trial.intermediate_values.items()))
    complete = trial.state is TrialState.COMPLETE and trial.values is not None
    return TrialStatus(
        number=trial.number,
        state=state,
        value=trial.values[0] if complete else reached[-1][1] if reached else None,
        parameters=trial.params,
        reached=reached,
        facts=facts,
        began=trial.datetime_start,
        ended=trial.datetime_complete,
        again=again if isinstance(again, int) else None,
    )


def _state(trial: FrozenTrial, facts: TrialFacts) -> State:
    match trial.state:
        case TrialState.WAITING:
            return "waiting"
        case TrialState.RUNNING:
            return "running"
        case TrialState.COMPLETE:
            return "complete"
        case TrialState.PRUNED:
            return "infeasible" if facts.state == "infeasible" else "pruned"
        case _:
            if STOPPED in trial.user_attrs:
                return "stopped"
            return "failed" if facts.state == "failed" else "lost"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _end(trial: TrialStatus) -> datetime:
    return trial.ended or datetime.max
