"""Works at a study: takes a trial, plans it, runs it and tells what came of it, until the study is done or somebody says stop.

Any number of workers, on any number of machines, may work at one study; the storage is all that they share.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import optuna
import psutil
from optuna.trial import TrialState

from batchcal.core.errors import BatchcalError, GuardError, Interrupted, NotSaved, UsageError
from batchcal.core.progress import Field, Progress, Silent
from batchcal.hpo.config import StudySettings
from batchcal.hpo.request import Reached, TrialRequest
from batchcal.hpo.shapes import Fitting, ShapeBook, TooLarge
from batchcal.hpo.space import BATCH_SIZE, EPOCHS, WARMUP_STEPS, Space, Values, arguments_of, sample, shape_of
from batchcal.hpo.trial import GiveUp, TrialEnd, TrialRunner
from batchcal.train.options import TrainOptions

MEMORY: Final = "memory"
"""The constraint: above 0 where a trial does not fit."""
ATTRIBUTES: Final = "batchcal"
"""User attribute of a trial: what is known of it besides its value."""
WORKER: Final = "batchcal_worker"
AGAIN: Final = "batchcal_again"
"""User attribute of a trial: the number of the one that it runs once more."""


class TrialFailed(Exception):
    """The trial is told as failed, with its class; the study goes on."""


class Stopped(Exception):
    """Raised in a trial that is to end now; it is run again when the study goes on."""


@dataclass
class Worker:
    """One process's work at a study."""

    study: optuna.Study
    settings: StudySettings
    space: Space
    book: ShapeBook
    runner: TrialRunner
    options: TrainOptions
    """As for `train`; what the space samples takes their place."""
    effective_batch: int
    """Where the space has no batch size."""
    progress: Progress = field(default_factory=Silent)
    stop_after_trial: Callable[[], bool] = lambda: False
    stop_now: Callable[[], bool] = lambda: False

    def work(self) -> int:
        """Runs trials until the study has all of them, or `stop_after_trial`. Returns how many it ran.

        Raises:
            UsageError: the factory does not take what is sampled: no trial could be run.
        """
        ran = 0
        retry_lost(self.study)
        while not self.stop_after_trial() and not self.stop_now() and taken(self.study) < self.settings.trials:
            self.study.optimize(self._objective, n_trials=1, catch=(TrialFailed,))
            ran += 1
        return ran

    def _objective(self, trial: optuna.Trial) -> float:
        trial.set_user_attr(WORKER, identity())
        values = sample(self.space, trial)
        self.progress.event("trial_started", {"trial": trial.number, **values})
        try:
            end = self._run(trial, values)
        except Stopped as error:
            self._keep(trial, {"state": "stopped", "why": str(error)})
            self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
            raise TrialFailed(str(error)) from None
        except (UsageError, NotSaved, Interrupted):
            raise
        except (BatchcalError, GuardError) as error:
            end = TrialEnd("failed", kind=type(error).__name__, why=error.what)
        return self._told(trial, end)

    def _run(self, trial: optuna.Trial, values: Values) -> TrialEnd:
        batch = values.get(BATCH_SIZE)
        effective_batch = batch if isinstance(batch, int) else self.effective_batch
        known = self.book.plan(shape_of(self.space, values), effective_batch)
        if isinstance(known, TooLarge):
            trial.set_constraint(MEMORY, known.excess)
            return TrialEnd("infeasible", kind="too-large", why=known.why)
        plan = known.plan
        trial.set_constraint(MEMORY, min(0.0, plan.predicted_peak_bytes / plan.budget_bytes - 1))
        self._keep(
            trial,
            {
                "effective_batch": plan.effective_batch,
                "micro_batch": plan.micro_batch,
                "accumulation_steps": plan.accumulation_steps,
                "eval_batch": plan.eval_batch,
                "predicted_peak_bytes": plan.predicted_peak_bytes,
                "budget_bytes": plan.budget_bytes,
                "parameters": known.parameters,
                "shape_measured": known.measured,
            },
        )
        request = self._request(known, values)
        listener = self._listener(trial, request.options.epochs * max(1, request.folds))
        return self.runner.run(request, listener, total_s=self.settings.trial_limit_s)

    def _request(self, known: Fitting, values: Values) -> TrialRequest:
        reference = self.book.reference
        epochs, warmup = values.get(EPOCHS), values.get(WARMUP_STEPS)
        options = replace(self.options, epochs=epochs) if isinstance(epochs, int) else self.options
        return TrialRequest(
            reference=reference.model_copy(update={"arguments": {**reference.arguments, **arguments_of(values)}}),
            plan=known.plan,
            options=options,
            calibration=str(known.calibration),
            metric=self.settings.metric,
            maximize=self.settings.direction == "maximize",
            folds=self.settings.folds,
            warmup_steps=warmup if isinstance(warmup, int) else None,
        )

    def _listener(self, trial: optuna.Trial, last: int) -> Callable[[Reached], None]:
        """`last`: the resource with which it is complete."""

        def listen(reached: Reached) -> None:
            if self.stop_now():
                raise Stopped("stopped, and to be run again")
            trial.report(reached.value, reached.resource)
            self.progress.event("trial_reached", {"trial": trial.number, "epochs": reached.resource, "value": reached.value})
            if reached.resource < last and trial.should_prune():
                raise GiveUp(f"given up after {reached.resource} epochs at {reached.value:.6g}")

        return listen

    def _told(self, trial: optuna.Trial, end: TrialEnd) -> float:
        facts: dict[str, object] = {"state": end.state, "kind": end.kind or None, "why": end.why or None, "wall_s": end.wall_s}
        if end.peak_bytes:
            facts["peak_bytes"] = end.peak_bytes
        if end.answer is not None:
            facts |= end.answer.model_dump(mode="json")
        self._keep(trial, facts)
        told: dict[str, Field] = {"trial": trial.number, "state": end.state, "kind": end.kind or None, "why": end.why or None}
        self.progress.event("trial_ended", {**told, "value": None if end.answer is None else end.answer.value})
        if end.answer is not None:
            return end.answer.value
        if end.state == "failed":
            raise TrialFailed(f"{end.kind}: {end.why}")
        raise optuna.TrialPruned(end.why)

    def _keep(self, trial: optuna.Trial, facts: Mapping[str, object]) -> None:
        before: object = trial.user_attrs.get(ATTRIBUTES, {})
        known = before if isinstance(before, dict) else {}
        trial.set_user_attr(ATTRIBUTES, {**known, **facts})


def taken(study: optuna.Study) -> int:
    """Trials that count: those that ended or run, each once however often it had to be run."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state is not TrialState.WAITING and not _again(trial) for trial in trials)


def retry_lost(study: optuna.Study) -> tuple[int, ...]:
    """Fails the trials of this machine's dead workers, and queues each to be run again. Returns their numbers.

    For storages without heartbeats, whose trials would run for ever. Those of other machines are left: nobody here can tell.
    """
    lost: list[int] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker: object = trial.user_attrs.get(WORKER)
        if isinstance(worker, str) and _is_dead(worker):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
            lost.append(trial.number)
    return tuple(lost)


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
        return f"{psutil.Process(int(pid)).create_time():.2f}" != began
    except psutil.NoSuchProcess:
        return True


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _again(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether it is another run of a trial that is counted."""
    return AGAIN in trial.user_attrs or "retry_history" in trial.system_attrs
