"""Texts about a study that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.hpo.study_status import State, StudyStatus, TrialStatus

HEADS: Final = ("#", "state", "value", "epochs", "batch", "memory", "parameters")
NUMBERS: Final = frozenset({"#", "value", "epochs", "batch", "memory"})
STYLES: Final[dict[State, str]] = {
    "running": "cyan",
    "waiting": "dim",
    "complete": "green",
    "pruned": "yellow",
    "infeasible": "magenta",
    "failed": "red",
    "stopped": "dim",
    "lost": "red",
}
_ORDER: Final[tuple[State, ...]] = ("running", "complete", "pruned", "infeasible", "failed", "waiting", "stopped", "lost")


def counts_line(study: StudyStatus) -> str:
    """`2 running, 12 complete, 30 pruned`."""
    counts = study.counts()
    return ", ".join(f"{count(counts[state])} {state}" for state in _ORDER if counts.get(state))


def row(study: StudyStatus, trial: TrialStatus) -> tuple[str, ...]:
    """Return the cells of a trial, in the order of `HEADS`."""
    return (
        str(trial.number),
        trial.state,
        "" if trial.value is None else number(trial.value),
        f"{trial.epochs}/{study.resource}" if trial.epochs else "",
        batch_of(trial),
        memory_of(trial),
        parameters_of(trial),
    )


def reason(trial: TrialStatus) -> str:
    """Return the reason why a trial did not run, or not to its end: `trial 3, failed (out-of-memory): ...`."""
    kind = f" ({trial.facts.kind})" if trial.state == "failed" and trial.facts.kind else ""
    why = trial.facts.why or ("its worker died; the trial was run again" if trial.state == "lost" else "the reason is unknown")
    return f"trial {trial.number}, {trial.state}{kind}: {why}"


def batch_of(trial: TrialStatus) -> str:
    """Return `64 = 32x2`, effective batch = micro-batch x accumulation, or `100 in 7`, which is 7 parts of unequal sizes."""
    facts = trial.facts
    if facts.effective_batch is None or facts.micro_batch is None or facts.accumulation_steps is None:
        return ""
    effective_batch = count(facts.effective_batch)
    if facts.accumulation_steps == 1:
        return effective_batch
    # If it does not divide, no product of two numbers is exact: some micro-batches are one sample smaller.
    if facts.micro_batch * facts.accumulation_steps != facts.effective_batch:
        return f"{effective_batch} in {facts.accumulation_steps}"
    return f"{effective_batch} = {count(facts.micro_batch)}x{facts.accumulation_steps}"


def memory_of(trial: TrialStatus) -> str:
    """Return the peak, else the predicted peak."""
    facts = trial.facts
    if facts.peak_bytes:
        return format_bytes(facts.peak_bytes)
    return f"~{format_bytes(facts.predicted_peak_bytes)}" if facts.predicted_peak_bytes else ""


def parameters_of(trial: TrialStatus) -> str:
    """`learning_rate=0.0012 d_model=64`."""
    return " ".join(f"{name}={text_of(value)}" for name, value in trial.parameters.items())


def text_of(value: object) -> str:
    """Return a sampled value as text."""
    return number(value) if isinstance(value, float) else str(value)


def summary(study: StudyStatus) -> list[tuple[str, str, str]]:
    """Return the results: name, answer, remark."""
    best = study.best()
    results: list[tuple[str, str, str]] = []
    if best is not None and best.value is not None:
        results.append((f"best {study.metric}", number(best.value), f"trial {best.number}: {parameters_of(best)}"))
    done = f"{count(study.done)} of {count(study.wanted)}"
    left_s = study.left_s()
    results.append(("trials", done, counts_line(study) + (f"; {format_seconds(left_s)} left" if left_s is not None else "")))
    saved = study.saved_epochs()
    if saved:
        trained = sum(trial.epochs for trial in study.trials)
        results.append(
            (
                "saved by pruning",
                f"{saved / (saved + trained):.0%}",
                f"{count_of(saved, 'epoch')} of {count(saved + trained)} not trained, about {format_seconds(study.saved_s())}",
            )
        )
    error, shapes = study.prediction_error(), study.calibrations()
    if error is not None:
        remark = f"median error of the predicted memory; {count_of(shapes, 'model shape')} measured"
        results.append(("prediction error", f"{error:.1%}", remark))
    return results


def ranked_trials(study: StudyStatus) -> Sequence[TrialStatus]:
    """Return the most informative trials, the best first: running, then complete, then those that came close. Trials that were
    run again are left out."""
    order: dict[State, int] = {state: place for place, state in enumerate(_ORDER)}
    return sorted(
        (trial for trial in study.trials if trial.state not in ("stopped", "lost", "waiting")),
        key=lambda trial: (
            order[trial.state],
            -study.better * trial.value if trial.value is not None else 0.0,
            trial.number if trial.state != "running" else -trial.number,
        ),
    )
