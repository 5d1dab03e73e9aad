"""Worker of a study: takes a trial, plans it, runs it and records the result, until the study is done or the worker must stop.

Any number of workers, on any number of machines, may work at one study. They share only the storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials

from batchcal.core.errors import BatchcalError, NothingFits, Partial, UserCodeError
from batchcal.core.progress import Progress, Silent
from batchcal.core.units import count_of
from batchcal.hpo.config import StudySettings
from batchcal.hpo.search.space import EPOCHS, WARMUP_STEPS, Space, Values, arguments_of, sample
from batchcal.hpo.shapes import Fitting, ShapeBook, TooLarge
from batchcal.hpo.storage.presence import identity, present
from batchcal.hpo.study import make_sampler
from batchcal.hpo.trials.epoch_judge import Judge
from batchcal.hpo.trials.facts import ATTRIBUTES, OUT_OF_MEMORY, facts_of
from batchcal.hpo.trials.job import Reached, TrialRequest
from batchcal.hpo.trials.reruns import (
    AGAIN,
    STOPPED,
    SURPLUS,
    WORKER,
    came_too_late,
    retry_lost,
    run_again,
    to_be_run,
)
from batchcal.hpo.trials.trial import TrialEnd, TrialRunner
from batchcal.train.options import TrainOptions
from batchcal.values.study_events import TrialEnded, TrialReached, TrialStarted, WorkerEvent
from batchcal.workload.spec.reference import TaskReference

MEMORY: Final = "memory"
"""Name of the constraint: above 0 if a trial does not fit."""
HOPELESS: Final = 100
"""Number of trials after which, if none of them fits, none will."""
TRACEBACK: Final = 4000
"""Characters of a traceback that are kept."""
BROKEN: Final = 5
"""Number of trials after which, if all failed in the task's own code, the task is wrong."""


class TrialFailed(Exception):
    """The trial is recorded as failed, with its class. The study continues."""


@dataclass
class Worker:
    """One process's work at a study."""

    study: optuna.Study
    settings: StudySettings
    space: Space
    book: ShapeBook
    runner: TrialRunner
    options: TrainOptions
    """Options as for `train`. Sampled values replace them."""
    effective_batch: int
    """Effective batch if the space has no batch size."""
    presences: Path | None = None
    """Folder of the workers' locks. None: the storage has heartbeats."""
    progress: Progress[WorkerEvent] = field(default_factory=Silent)
    finish: Callable[[], bool] = lambda: False
    """Returns True if the worker must stop after the running trial."""
    _taken_over: bool = False
    """True if another worker ended the trial that ran."""

    def work(self) -> int:
        """Run trials until the study has all of them, or until `finish`. Return the number of trials that it ran.

        Raises:
            UsageError: the factory does not accept the sampled values, so no trial can run.
            NothingFits, UserCodeError: none of the first trials fitted, or ran.
            Interrupted: a signal arrived. The trial that ran will run again.
        """
        with present(identity(), self.presences):
            return self._work()

    def _work(self) -> int:
        ran = 0
        while not self.finish():
            retry_lost(self.study, self.presences)
            fail_stale_trials(self.study)
            if not to_be_run(self.study.get_trials(deepcopy=False), self.settings.trials):
                break
            try:
                self.study.optimize(self._objective, n_trials=1, catch=(TrialFailed,))
            except (UpdateFinishedTrialError, ValueError):
                if not self._taken_over:
                    raise
            self._taken_over = False
            ran += 1
            self._stop_if_hopeless()
        return ran

    def _objective(self, trial: optuna.Trial) -> float:
        try:
            return self._sample_and_run(trial)
        except (TrialFailed, optuna.TrialPruned):
            raise
        except UpdateFinishedTrialError:
            # This worker was taken for dead, and another one has handled the trial.
            self._taken_over = True
            raise
        except Exception as error:
            # The cause is not the trial, but a signal, the storage, the machine or the config. It will run again.
            if isinstance(error, BatchcalError):
                trial.set_user_attr(STOPPED, True)
                self._store(trial, {"state": "stopped"})
            run_again(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise

    def _sample_and_run(self, trial: optuna.Trial) -> float:
        trial.set_user_attr(WORKER, identity())
        if AGAIN not in trial.user_attrs and came_too_late(
            self.study.get_trials(deepcopy=False), trial.number, self.settings.trials
        ):
            trial.set_user_attr(SURPLUS, True)
            raise TrialFailed("the study has all its trials")
        # Seeded by its number: workers that begin together sample different values, and a single worker always the same.
        self.study.sampler = make_sampler(self.settings.seed, trial.number)
        values = sample(self.space, trial)
        self.progress.event(TrialStarted(trial=trial.number, values=values))
        try:
            end = self._run(trial, values)
        except (NothingFits, UserCodeError, Partial) as error:
            why = f"{error.what} ({error.known})" if isinstance(error, Partial) and error.known else error.what
            trace = error.known if isinstance(error, UserCodeError) else ""
            end = TrialEnd("failed", kind=_kind_of(error), why=why, traceback=trace)
        return self._record(trial, end)

    def _run(self, trial: optuna.Trial, values: Values) -> TrialEnd:
        fitting = self.book.plan_trial(self.space, values, self.effective_batch)
        if isinstance(fitting, TooLarge):
            trial.set_constraint(MEMORY, fitting.excess)
            return TrialEnd("infeasible", kind="too-large", why=fitting.why)
        plan = fitting.plan
        trial.set_constraint(MEMORY, min(0.0, plan.predicted_peak_bytes / plan.budget_bytes - 1))
        self._store(
            trial,
            {
                "effective_batch": plan.effective_batch,
                "micro_batch": plan.micro_batch,
                "accumulation_steps": plan.accumulation_steps,
                "eval_batch": plan.eval_batch,
                "predicted_peak_bytes": plan.predicted_peak_bytes,
                "budget_bytes": plan.budget_bytes,
                "parameters": fitting.parameters,
                "shape_measured": fitting.measured,
            },
        )
        request = training_of(self.book.reference, self.options, values, fitting, self.settings)
        judge = self._judge(trial, request.options.epochs * max(1, request.folds))
        return self.runner.run(request, judge, total_s=self.settings.trial_limit_s)

    def _judge(self, trial: optuna.Trial, last: int) -> Judge:
        """`last`: the resource at which the trial is complete."""

        def judge(reached: Reached) -> str | None:
            trial.report(reached.value, reached.resource)
            self.progress.event(TrialReached(trial=trial.number, epochs=reached.resource, value=reached.value))
            if reached.resource < last and trial.should_prune():
                return f"pruned after {count_of(reached.resource, 'epoch')} with the value {reached.value:.6g}"
            return None

        return judge

    def _record(self, trial: optuna.Trial, end: TrialEnd) -> float:
        facts: dict[str, object] = {"state": end.state, "kind": end.kind or None, "why": end.why or None, "wall_s": end.wall_s}
        if end.traceback:
            facts["traceback"] = end.traceback[-TRACEBACK:]
        if end.peak_bytes:
            facts["peak_bytes"] = end.peak_bytes
        if end.answer is not None:
            facts |= end.answer.model_dump(mode="json")
        self._store(trial, facts)
        value = None if end.answer is None else end.answer.value
        self.progress.event(
            TrialEnded(trial=trial.number, state=end.state, kind=end.kind or None, why=end.why or None, value=value)
        )
        if end.answer is not None:
            return end.answer.value
        if end.state == "failed":
            raise TrialFailed(f"{end.kind}: {end.why}")
        raise optuna.TrialPruned(end.why)

    def _store(self, trial: optuna.Trial, facts: Mapping[str, object]) -> None:
        attribute: object = trial.user_attrs.get(ATTRIBUTES, {})
        stored = attribute if isinstance(attribute, dict) else {}
        trial.set_user_attr(ATTRIBUTES, {**stored, **facts})

    def _stop_if_hopeless(self) -> None:
        """Raises:
        NothingFits: no trial so far fitted, or had enough memory.
        UserCodeError: no trial so far completed the task's code.
        """
        ended = [facts_of(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        outcomes = [facts for facts in ended if facts.state not in (None, "stopped")]
        states = {facts.state for facts in outcomes}
        if states == {"infeasible"} and len(outcomes) >= min(HOPELESS, self.settings.trials):
            raise NothingFits(
                f"none of {len(outcomes)} trials fits",
                known=f"the latest trial: {outcomes[-1].why}",
                try_="smaller bounds in [hpo.space], a larger budget in [hpo], or a higher memory limit",
            )
        if states == {"failed"} and len(outcomes) >= min(BROKEN, self.settings.trials):
            kinds = ", ".join(sorted({str(facts.kind) for facts in outcomes}))
            more = len(outcomes) < self.settings.trials
            kind = NothingFits if kinds == OUT_OF_MEMORY else UserCodeError
            raise kind(
                f"all {count_of(len(outcomes), 'trial')} failed ({kinds})",
                known=f"the latest trial: {outcomes[-1].why}" + (f"\n{outcomes[-1].traceback}" if outcomes[-1].traceback else ""),
                try_="fix the cause, then run the same command again" + ("" if more else ", with --set study=ANOTHER-NAME"),
            )


def _kind_of(error: BatchcalError) -> str:
    """Return the name of the error among the outcomes of trials."""
    if isinstance(error, NothingFits):
        return OUT_OF_MEMORY
    return "user-code-failed" if isinstance(error, UserCodeError) else "not-calibrated"


def training_of(
    reference: TaskReference, options: TrainOptions, values: Values, fitting: Fitting, settings: StudySettings
) -> TrialRequest:
    """Return the request for a training with the sampled `values`."""
    epochs, warmup = values.get(EPOCHS), values.get(WARMUP_STEPS)
    return TrialRequest(
        reference=reference.model_copy(update={"arguments": {**reference.arguments, **arguments_of(values)}}),
        plan=fitting.plan,
        options=replace(options, epochs=epochs) if isinstance(epochs, int) else options,
        calibration=str(fitting.calibration),
        memory_limit_bytes=fitting.memory_limit_bytes,
        metric=settings.metric,
        maximize=settings.direction == "maximize",
        folds=settings.folds,
        warmup_steps=warmup if isinstance(warmup, int) else None,
        stall_limit_s=settings.stall_limit_s,
    )
