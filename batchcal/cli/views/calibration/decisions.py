"""Reasons for each decision of a calibration, as questions and answers."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED, MemoryModel
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.rehearsal import Finalist, Rehearsal
from batchcal.calibration.schema import Budget, Calibration, Capacity, Finding
from batchcal.cli.views.words import count, limit_sentence, long
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.guard.outcome import Fits
from batchcal.plan.division.rules import percent
from batchcal.workload.data.in_flight import PREFETCH_FACTOR

SHOWN_S: Final = 0.01
"""Shortest part that is listed, seconds. Shorter parts were skipped: they only checked that there was nothing to do."""
PARTS: Final[dict[str, str]] = {
    "examination": "loading and examining the task",
    "worker-trial": "a trial of DataLoader workers",
    "policies": "the race of allocator policies",
    "train-capacity": "the search for the training batch",
    "eval-capacity": "the search for the evaluation batch",
    "heap-growth": "training with batches that change their shapes",
    "micro-batches": "the race of micro-batches",
    "threads-and-workers": "the race of threads and workers",
    "rehearsal": "the rehearsal",
    "attribution": "comparing with PyTorch's defaults",
}


def decisions(calibration: Calibration) -> tuple[tuple[str, str], ...]:
    """Return (question, answer) in the order in which the questions arose."""
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
    if calibration.size_rule is not None:
        told.append(("which batch sizes the task takes", calibration.size_rule.sentence))
    told += _policies(calibration)
    for finding in calibration.findings:
        told += _finding(calibration, finding)
    told += _races(calibration)
    told += [_rehearsal(calibration, one) for one in calibration.rehearsals]
    if calibration.facts is not None:
        largest = {
            "size_of": "the largest samples by the task's size_of",
            "scan": "the largest samples, found by looking at all of them",
            "partial-scan": "the largest of the samples that could be looked at in time",
            "first-samples": "the largest of the first samples of a stream: a later one may be larger",
            "unknown": "any samples: none shows its size, so that a larger one may exist",
        }[calibration.facts.worst_case]
        told.append(("which samples the probes ran on", largest))
    told += [_promise(check) for check in calibration.promises]
    if len({finding.device for finding in calibration.findings}) > 1:
        told.append((f"why {calibration.chosen_device}", "the fastest device that was measured"))
    told += _repeated(calibration)
    told += _time(calibration)
    told += [("what is still undone", left.text) for left in calibration.undone]
    return tuple(told)


def _repeated(calibration: Calibration) -> list[tuple[str, str]]:
    """Spread of the peaks of setups with several runs."""
    told = []
    for runs in calibration.setups:
        if runs.count < 2 or runs.peak_bytes is None:
            continue
        mode = "training" if runs.mode == "train" else "evaluation"
        others = [f"{number} {kind.replace('-', ' ')}" for kind, number in runs.outcomes.items() if kind != "fits"]
        peaks = runs.peak_bytes
        answer = [f"{runs.outcomes.get('fits', 0)} fit", *others]
        answer.append(f"peaks from {format_bytes(peaks.least)} to {format_bytes(peaks.greatest)}")
        told.append(
            (
                f"how far {runs.count} runs of {mode} at {count(runs.batch)} differ on {runs.device} under {runs.allocator}",
                ", ".join(answer),
            )
        )
    return told


def _time(calibration: Calibration) -> list[tuple[str, str]]:
    """Duration of each part."""
    if not calibration.time_slices:
        return []
    parts = [
        f"{PARTS.get(one.part, one.part)} {format_seconds(one.wall_s)}"
        for one in calibration.time_slices
        if one.wall_s >= SHOWN_S
    ]
    rest = calibration.wall_s - sum(one.wall_s for one in calibration.time_slices)
    parts += [f"the rest {format_seconds(rest)}"] if rest > 0 else []
    return [(f"where {format_seconds(calibration.wall_s)} went", ", ".join(parts))]


def _promise(check: PromiseCheck) -> tuple[str, str]:
    question = {
        "mean-over-weight": "is the loss of a batch the mean over its weight",
        "batch-statistics": "does a layer depend on the other samples of its batch",
        "same-samples-in-workers": "do DataLoader workers return the same samples",
    }[check.promise]
    if check.result == "not-checked":
        return question, f"not checked: {check.cause}"
    if check.result == "ok":
        off = "" if check.mismatch is None else f" (gradients of parts and whole differ by {check.mismatch:.0e})"
        return question, f"{'no' if check.promise == 'batch-statistics' else 'yes'}{off}"
    off = "" if check.mismatch is None else f", off by {percent(check)}"
    fix = f". Fix: {check.fix}" if check.fix else ""
    return question, f"{'yes' if check.promise == 'batch-statistics' else 'no'}{off}: {check.cause}{fix}"


def _policies(calibration: Calibration) -> list[tuple[str, str]]:
    """Result of the race of allocator policies. Empty if there was no other policy."""
    raced = [one for one in calibration.speeds if one.device == calibration.chosen_device]
    if len(raced) < 2:
        return []
    answers = []
    for one in raced:
        best = one.fastest(UNBOUNDED)
        rate = "" if best is None else f"{count(best.samples_per_s(best.micro_batch))} samples/s at {count(best.micro_batch)}"
        told = [rate, count_of(one.rounds, "round") if one.rounds else "", one.why]
        answers.append(f"{one.allocator}: {', '.join(text for text in told if text) or 'not raced'}")
    return [(f"why the allocator policy {calibration.policy}", "; ".join(answers))]


def _races(calibration: Calibration) -> list[tuple[str, str]]:
    """Results of the races of complete plans: threads and workers, then micro-batches."""
    told = []
    for finals in calibration.finals:
        winner = finals.winner
        others = [one for one in finals.finalists[1:] if one.samples_per_s is not None]
        pruned = sum(one.left == "pruned" for one in finals.finalists)
        answer = [
            f"{_rate(winner.samples_per_s)} of {count(finals.limit_samples_per_s)} that conservation of work allows at most"
        ]
        answer += [f"{_loader(one)}: {_rate(one.samples_per_s)}" for one in others]
        answer += [f"{count_of(pruned, 'other')} could not be faster by enough to be run"] if pruned else []
        answer += [] if finals.settled else ["time ended it before it was settled"]
        told.append((f"why {_loader(winner)} under {finals.allocator}", "; ".join(answer)))
    for race in calibration.sizes:
        fastest = race.fastest(race.effective_batch)
        rates = "; ".join(f"{count(one.micro_batch)}: {one.why or _rate(one.samples_per_s)}" for one in race.sizes)
        if fastest is not None:
            unsettled = "" if race.settled else "; time ended it before it was settled"
            question = f"why micro-batches of {count(fastest)} for steps of {count(race.effective_batch)}"
            told.append((question, f"whole optimizer steps were raced. {rates}{unsettled}"))
    return told


def _loader(one: Finalist) -> str:
    """`2 threads, no workers`."""
    workers = count_of(one.num_workers, "worker") if one.num_workers else "no workers"
    ahead = f" reading {one.prefetch_factor} ahead" if one.prefetch_factor not in (None, PREFETCH_FACTOR) else ""
    start = f" started by {one.multiprocessing_context}" if one.multiprocessing_context else ""
    return f"{count_of(one.intra_op_threads, 'thread')}, {workers}{ahead}{start}"


def _rehearsal(calibration: Calibration, rehearsal: Rehearsal) -> tuple[str, str]:
    """Result of a plan that was run completely."""
    sizes = rehearsal.settings.micro_batches
    steps = f"{len(sizes)} x {count(max(sizes))}" if len(sizes) > 1 else count(sizes[0])
    outcome = rehearsal.outcome
    if not isinstance(outcome, Fits):
        at = "evaluating" if rehearsal.evaluating else "training"
        return f"what the rehearsal of {steps} said", f"it failed while {at}: {long(outcome)}"
    held = format_bytes(outcome.peak.held_on(rehearsal.settings.device))
    budget = calibration.budget(rehearsal.settings.device)
    of = "" if budget is None else f" of a budget of {format_bytes(budget.budget_bytes)}"
    waits = "" if rehearsal.wait_share is None else f", {rehearsal.wait_share:.0%} of a step waiting for its batch"
    run = rehearsal.micro_batches_run
    part = f"; {run} of {len(sizes)} micro-batches of each step were run" if run < len(sizes) else ""
    answer = (
        f"{held}{of}, evaluations of {count(rehearsal.settings.eval_batch)} included; {_rate(outcome.samples_per_s)}{waits}{part}"
    )
    return f"what the rehearsal of {steps} said", answer


def _rate(samples_per_s: float | None) -> str:
    return "not run" if samples_per_s is None else f"{count(samples_per_s)} samples/s"


def _budget(budget: Budget, margin: float) -> str:
    return (
        f"the limit {format_bytes(budget.limit_bytes)} ({budget.learned_from}) less {format_bytes(budget.others_bytes)} "
        f"that others use and a margin of {margin:.0%} ({format_bytes(budget.margin_bytes)})"
        + (f", and {format_bytes(budget.reserved_bytes)} that an epoch adds" if budget.reserved_bytes else "")
    )


def _finding(calibration: Calibration, finding: Finding) -> list[tuple[str, str]]:
    where = f"{finding.device} under {finding.allocator}"
    told = [
        (f"how memory grows on {where}", _model(finding.train_memory)),
        (f"why {count(finding.train.batch)} to train on {where}", _capacity(calibration, finding, finding.train, "train")),
    ]
    budget = calibration.budget(finding.device)
    if finding.heap_growth > 1 and budget is not None:
        usable = format_bytes(finding.usable_bytes(budget.budget_bytes))
        answer = (
            f"batches change their shapes, and the heap grows while they do: after many steps a batch takes "
            f"{finding.heap_growth:.2f} times what it takes after a few, which may therefore hold {usable} of the budget"
        )
        told.append((f"why not all of the budget on {where}", answer))
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
    by = f"probe {capacity.measured_by}" if capacity.measured_by else "a rehearsal"
    text = (
        f"run by {by} with a peak of {format_bytes(capacity.peak_bytes)} at "
        f"{count(capacity.samples_per_s)} samples/s ({format_seconds(capacity.batch / capacity.samples_per_s)} a step); "
        f"limited by {limit}"
    )
    if capacity.ruled_out is None:
        return text
    return f"{text}; a rehearsal at micro-batch {count(capacity.ruled_out)} ran out of memory"
