"""Why each decision of a calibration was made, as questions and answers."""

from __future__ import annotations

from batchcal.calibration.memory_model import MemoryModel
from batchcal.calibration.schema import Budget, Calibration, Capacity, Finding
from batchcal.cli.views.words import count, limit_sentence, long
from batchcal.core.units import count_of, format_bytes, format_seconds


def decisions(calibration: Calibration) -> tuple[tuple[str, str], ...]:
    """(question, answer), in the order in which they arose."""
    options = calibration.options
    told: list[tuple[str, str]] = []
    for budget in calibration.budgets:
        told.append((f"why a budget of {format_bytes(budget.budget_bytes)} on {budget.device}", _budget(budget, options.margin)))
    told.append(
        (
            f"why at most {count_of(options.samples, 'step')} a probe",
            "by the size of the memory limit, or as asked; a probe ends sooner once its peak has stood still for two steps",
        )
    )
    for probe in calibration.measurements:
        why = probe.why or "asked by the search"
        again = f" (attempt {probe.attempt})" if probe.attempt > 1 else ""
        told.append((f"why probe {probe.sequence}, {probe.mode} {count(probe.batch)}{again}", f"{why}. {long(probe.outcome)}"))
    for finding in calibration.findings:
        told += _finding(calibration, finding)
    if calibration.facts is not None:
        largest = {
            "size_of": "the largest samples by the task's size_of",
            "scan": "the largest samples, found by looking at all of them",
            "partial-scan": "the largest of the samples that could be looked at in time",
            "first-samples": "the first samples: all are of one size, or nothing says which are larger",
        }[calibration.facts.worst_case]
        told.append(("which samples the probes ran on", largest))
    if len({finding.device for finding in calibration.findings}) > 1:
        told.append((f"why {calibration.chosen_device}", "the fastest device that was measured"))
    for text in calibration.undone:
        told.append(("what is still undone", text))
    return tuple(told)


def _budget(budget: Budget, margin: float) -> str:
    return (
        f"the limit {format_bytes(budget.limit_bytes)} ({budget.learned_from}) less {format_bytes(budget.others_bytes)} "
        f"that others use and a margin of {margin:.0%} ({format_bytes(budget.margin_bytes)})"
    )


def _finding(calibration: Calibration, finding: Finding) -> list[tuple[str, str]]:
    where = f"{finding.device} under {finding.allocator}"
    told = [
        (f"how memory grows on {where}", _model(finding.train_memory)),
        (f"why {count(finding.train.batch)} to train on {where}", _capacity(calibration, finding, finding.train, "train")),
    ]
    if finding.eval is not None:
        told.append((f"why {count(finding.eval.batch)} to evaluate", _capacity(calibration, finding, finding.eval, "eval")))
    return told


def _model(model: MemoryModel) -> str:
    per_sample = model.predict(2) - model.predict(1)
    fitted = f"fitted to {count_of(len(model.points), 'probe')}" if model.points else "not fitted to any probe"
    error = "" if model.relative_error is None else f", {model.relative_error:.1%} off at most"
    return (
        f"{format_bytes(model.base_bytes)} at rest and about {format_bytes(per_sample)} a sample; the shape is from "
        f"{model.source}, {fitted}{error}; runs of this allocator differ by {model.spread:.1%}"
    )


def _capacity(calibration: Calibration, finding: Finding, capacity: Capacity, mode: str) -> str:
    limit = limit_sentence(calibration, finding, "eval" if mode == "eval" else "train")
    return (
        f"run by probe {capacity.measured_by} with a peak of {format_bytes(capacity.peak_bytes)} at "
        f"{count(capacity.samples_per_s)} samples/s ({format_seconds(capacity.batch / capacity.samples_per_s)} a step); "
        f"limited by {limit}"
    )
