"""Studies that never ran: their trials as values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from batchcal.hpo.study_status import State, StudyStatus, TrialStatus
from batchcal.hpo.trials.facts import TrialFacts
from batchcal.workload.spec.reference import Scalar

BEGAN = datetime(2026, 11, 22, 12, 0)
MIB = 1 << 20


def a_trial(
    number: int,
    state: State = "complete",
    *,
    values: tuple[float, ...] = (0.5, 0.4),
    parameters: Mapping[str, Scalar] | None = None,
    wall_s: float = 10.0,
    why: str | None = None,
    kind: str | None = None,
    again: int | None = None,
) -> TrialStatus:
    """`values`: what it reported, epoch by epoch."""
    began = BEGAN + timedelta(seconds=10 * number)
    ended = state not in ("running", "waiting")
    ran = state in ("complete", "pruned", "running")
    return TrialStatus(
        number=number,
        state=state,
        value=values[-1] if ran and values else None,
        parameters=parameters or {"learning_rate": 0.001 * (number + 1), "d_model": 64, "batch_size": 64},
        reached=tuple(enumerate(values, 1)) if ran else (),
        facts=TrialFacts(
            effective_batch=64 if ran else None,
            micro_batch=32 if ran else None,
            accumulation_steps=2 if ran else None,
            predicted_peak_bytes=300 * MIB if ran else None,
            peak_bytes=(306 + number) * MIB if state == "complete" else None,
            epochs=len(values) if state == "complete" else None,
            shape_measured=number == 0,
            why=why,
            kind=kind,
        ),
        began=began,
        ended=began + timedelta(seconds=wall_s) if ended else None,
        again=again,
    )


def a_study(*trials: TrialStatus, wanted: int = 20) -> StudyStatus:
    """Of at most 9 epochs a trial."""
    return StudyStatus("first", "minimize", "mse", wanted, 9, trials, task="train.py:task")


def a_busy_study() -> StudyStatus:
    """With a trial in each state."""
    curve = tuple(0.9 - 0.05 * epoch for epoch in range(9))
    return a_study(
        a_trial(0, values=curve),
        a_trial(1, "pruned", values=(0.95,)),
        a_trial(2, "infeasible", why="70,000,000 parameters, the study allows 2,000,000"),
        a_trial(3, "failed", why="ValueError: no", kind="user-code-failed"),
        a_trial(4, "lost"),
        a_trial(5, values=tuple(value - 0.1 for value in curve), again=4),
        a_trial(6, "stopped"),
        a_trial(7, "running", values=(0.8, 0.7)),
        a_trial(8, "waiting"),
        a_trial(9, "pruned", values=(0.99, 0.98, 0.97)),
    )
