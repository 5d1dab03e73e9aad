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


def counts_line(seen: StudyStatus) -> str:
    """`2 running, 12 complete, 30 pruned`."""
    counts = seen.counts()
    return ", ".join(f"{count(counts[state])} {state}" for state in _ORDER if counts.get(state))


def row(seen: StudyStatus, trial: TrialStatus) -> tuple[str, ...]:
    """Return the cells of a trial, in the order of `HEADS`."""
    return (
        str(trial.number),
        trial.state,
        "" if trial.value is None else number(trial.value),
        f"{trial.epochs}/{seen.resource}" if trial.epochs else "",
        batch_of(trial),
        memory_of(trial),
        parameters_of(trial),
    )


def reason(trial: TrialStatus) -> str:
    """Return the reason why a trial did not run, or not to its end: `trial 3, failed (out-of-memory): ...`."""
    kind = f" ({trial.facts.kind})" if trial.state == "failed" and trial.facts.kind else ""
    why = trial.facts.why or ("its worker died; it was run again" if trial.state == "lost" else "nobody knows why")
    return f"trial {trial.number}, {trial.state}{kind}: {why}"


def batch_of(trial: TrialStatus) -> str:
    """Return `64 = 32x2`, effective batch = micro-batch x accumulation, or `100 in 7`, which is 7 parts of unequal sizes."""
    facts = trial.facts
    if facts.effective_batch is None or facts.micro_batch is None or facts.accumulation_steps is None:
        return ""
    whole = count(facts.effective_batch)
    if facts.accumulation_steps == 1:
        return whole
    # If it does not divide, no product of two numbers is exact: some micro-batches are one sample smaller.
    if facts.micro_batch * facts.accumulation_steps != facts.effective_batch:
        return f"{whole} in {facts.accumulation_steps}"
    return f"{whole} = {count(facts.micro_batch)}x{facts.accumulation_steps}"


def memory_of(trial: TrialStatus) -> str:
    """Return the peak, else the predicted peak."""
    facts = trial.facts
    if facts.peak_bytes:
        return format_bytes(facts.peak_bytes)
    return f"~{format_bytes(facts.predicted_peak_bytes)}" if facts.predicted_peak_bytes else ""


def parameters_of(trial: TrialStatus) -> str:
    """`learning_rate=0.0012 d_model=64`."""
    return " ".join(f"{name}={value(one)}" for name, one in trial.parameters.items())


def value(one: object) -> str:
    """Return a sampled value as text."""
    return number(one) if isinstance(one, float) else str(one)


def summary(seen: StudyStatus) -> list[tuple[str, str, str]]:
    """Return the results: name, answer, remark."""
    best = seen.best()
    told: list[tuple[str, str, str]] = []
    if best is not None and best.value is not None:
        told.append((f"best {seen.metric}", number(best.value), f"trial {best.number}: {parameters_of(best)}"))
    done = f"{count(seen.done)} of {count(seen.wanted)}"
    left_s = seen.left_s()
    told.append(("trials", done, counts_line(seen) + (f"; {format_seconds(left_s)} left" if left_s is not None else "")))
    saved = seen.saved_epochs()
    if saved:
        trained = sum(one.epochs for one in seen.trials)
        told.append(
            (
                "saved by pruning",
                f"{saved / (saved + trained):.0%}",
                f"{count_of(saved, 'epoch')} of {count(saved + trained)} not trained, about {format_seconds(seen.saved_s())}",
            )
        )
    error, shapes = seen.prediction_error(), seen.calibrations()
    if error is not None:
        measured = f"of the memory that was predicted; {count_of(shapes, 'shape')} of the model measured"
        told.append(("prediction error", f"{error:.1%}", measured))
    return told


def shown(seen: StudyStatus) -> Sequence[TrialStatus]:
    """Return the most informative trials, the best first: running, then complete, then those that came close. Trials that were
    run again are left out."""
    order: dict[State, int] = {state: place for place, state in enumerate(_ORDER)}
    return sorted(
        (one for one in seen.trials if one.state not in ("stopped", "lost", "waiting")),
        key=lambda one: (
            order[one.state],
            -seen.better * one.value if one.value is not None else 0.0,
            one.number if one.state != "running" else -one.number,
        ),
    )
