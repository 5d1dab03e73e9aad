"""Reasons for each decision of a calibration, as questions and answers."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED, MemoryModel
from batchcal.calibration.records.promises import PromiseCheck, PromiseName
from batchcal.calibration.records.rehearsal import Finalist, Rehearsal
from batchcal.calibration.schema import Budget, Calibration, Capacity, Finding
from batchcal.cli.views.words import count, limit_sentence, long
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.guard.outcome import Fits
from batchcal.plan.division.rules import percent
from batchcal.workload.data.in_flight import PREFETCH_FACTOR

UNSETTLED: Final = "the race ended before the result was certain"
SHOWN_S: Final = 0.01
"""Shortest part that is listed, seconds. Shorter parts were skipped: they only checked that there was nothing to do."""
PARTS: Final[dict[str, str]] = {
    "examination": "loading and examining the task",
    "worker-trial": "a trial of DataLoader workers",
    "policies": "the race of allocator policies",
    "train-capacity": "the search for the training batch",
    "eval-capacity": "the search for the evaluation batch",
    "heap-growth": "training with batches of different shapes",
    "micro-batches": "the race of micro-batches",
    "threads-and-workers": "the race of threads and workers",
    "rehearsal": "the rehearsal",
    "attribution": "the comparison with PyTorch's defaults",
}


def decisions(calibration: Calibration) -> tuple[tuple[str, str], ...]:
    """Return (question, answer) in the order in which the questions arose."""
    options = calibration.options
    answers: list[tuple[str, str]] = []
    for budget in calibration.budgets:
        question = f"why a budget of {format_bytes(budget.budget_bytes)} on {budget.device}"
        answers.append((question, _budget(budget, options.margin)))
    answers.append(
        (
            f"why at most {count_of(options.samples, 'step')} per probe",
            "from the memory limit, or set by --samples; a probe ends earlier if its peak has not changed for two steps",
        )
    )
    for probe in calibration.measurements:
        why = probe.why or "requested by the search"
        attempt = f" (attempt {probe.attempt})" if probe.attempt > 1 else ""
        question = f"why probe {probe.sequence}, {probe.mode} {count(probe.batch)}{attempt}"
        answers.append((question, f"{why}. {long(probe.outcome)}"))
    if calibration.size_rule is not None:
        answers.append(("which batch sizes the task accepts", calibration.size_rule.sentence))
    answers += _policies(calibration)
    for finding in calibration.findings:
        answers += _finding(calibration, finding)
    answers += _races(calibration)
    answers += [_rehearsal(calibration, rehearsal) for rehearsal in calibration.rehearsals]
    if calibration.facts is not None:
        largest = {
            "size_of": "the largest samples according to the task's size_of",
            "scan": "the largest samples; all samples were read",
            "partial-scan": "the largest of the samples that were read in the available time",
            "first-samples": "the largest of the first samples of a stream; a later sample may be larger",
            "unknown": "arbitrary samples, because their sizes are unknown; a larger sample may exist",
        }[calibration.facts.worst_case]
        answers.append(("which samples the probes used", largest))
    answers += [_promise(check) for check in calibration.promises]
    if len({finding.device for finding in calibration.findings}) > 1:
        answers.append((f"why {calibration.chosen_device}", "the fastest device that was measured"))
    answers += _repeated(calibration)
    answers += _time(calibration)
    answers += [("what is not finished", undone.text) for undone in calibration.undone]
    return tuple(answers)


def _repeated(calibration: Calibration) -> list[tuple[str, str]]:
    """Spread of the peaks of setups with several runs."""
    answers = []
    for runs in calibration.setups:
        if runs.count < 2 or runs.peak_bytes is None:
            continue
        mode = "training" if runs.mode == "train" else "evaluation"
        failures = [f"{number} {kind.replace('-', ' ')}" for kind, number in runs.outcomes.items() if kind != "fits"]
        peaks = runs.peak_bytes
        parts = [f"{runs.outcomes.get('fits', 0)} fit", *failures]
        parts.append(f"peaks from {format_bytes(peaks.least)} to {format_bytes(peaks.greatest)}")
        setup = _setup(runs.device, runs.allocator)
        answers.append((f"how much {runs.count} {mode} runs of batch {count(runs.batch)} differ on {setup}", ", ".join(parts)))
    return answers


def _time(calibration: Calibration) -> list[tuple[str, str]]:
    """Duration of each part."""
    if not calibration.time_slices:
        return []
    parts = [
        f"{PARTS.get(time_slice.part, time_slice.part)} {format_seconds(time_slice.wall_s)}"
        for time_slice in calibration.time_slices
        if time_slice.wall_s >= SHOWN_S
    ]
    rest = calibration.wall_s - sum(time_slice.wall_s for time_slice in calibration.time_slices)
    parts += [f"the rest {format_seconds(rest)}"] if rest > 0 else []
    return [(f"how the {format_seconds(calibration.wall_s)} were used", ", ".join(parts))]


PROMISES: Final[dict[PromiseName, str]] = {
    "mean-over-weight": "is the loss of a batch the mean over its weight",
    "batch-statistics": "does a layer depend on the other samples of its batch",
    "same-samples-in-workers": "do DataLoader workers return the same samples",
    "step-without-loss": "does the optimizer step without computing the loss again",
}


def _promise(check: PromiseCheck) -> tuple[str, str]:
    question = PROMISES[check.promise]
    if check.result == "not-checked":
        return question, f"not checked: {check.cause}"
    if check.result == "ok":
        difference = "the gradients of the micro-batches and of the complete batch differ by"
        off = "" if check.mismatch is None else f" ({difference} {check.mismatch:.0e})"
        return question, f"{'no' if check.promise == 'batch-statistics' else 'yes'}{off}"
    off = "" if check.mismatch is None else f", off by {percent(check)}"
    fix = f". Fix: {check.fix}" if check.fix else ""
    return question, f"{'yes' if check.promise == 'batch-statistics' else 'no'}{off}: {check.cause}{fix}"


def _policies(calibration: Calibration) -> list[tuple[str, str]]:
    """Result of the race of allocator policies. Empty if there was no other policy."""
    policies = [speeds for speeds in calibration.speeds if speeds.device == calibration.chosen_device]
    if len(policies) < 2:
        return []
    answers = []
    for speeds in policies:
        best = speeds.fastest(UNBOUNDED)
        rate = "" if best is None else f"{_rate(best.samples_per_s(best.micro_batch))} with micro-batch {count(best.micro_batch)}"
        parts = [rate, count_of(speeds.rounds, "round") if speeds.rounds else "", speeds.why]
        answers.append(f"{speeds.allocator}: {', '.join(part for part in parts if part) or 'not timed'}")
    return [(f"why the allocator policy {calibration.policy}", "; ".join(answers))]


def _races(calibration: Calibration) -> list[tuple[str, str]]:
    """Results of the races of complete plans: threads and workers, then micro-batches."""
    answers = []
    for finals in calibration.finals:
        winner = finals.winner
        losers = [finalist for finalist in finals.finalists[1:] if finalist.samples_per_s is not None]
        pruned = sum(finalist.left == "pruned" for finalist in finals.finalists)
        parts = [f"{_rate(winner.samples_per_s)}; the upper bound for any choice is {_rate(finals.limit_samples_per_s)}"]
        parts += [f"{_loader(finalist)}: {_rate(finalist.samples_per_s)}" for finalist in losers]
        parts += [f"not run, because the possible gain is too small: {count_of(pruned, 'other choice')}"] if pruned else []
        parts += [] if finals.settled else [UNSETTLED]
        answers.append((f"why {_loader(winner)} with allocator {finals.allocator}", "; ".join(parts)))
    for race in calibration.sizes:
        fastest = race.fastest(race.effective_batch)
        rates = "; ".join(f"{count(size.micro_batch)}: {size.why or _rate(size.samples_per_s)}" for size in race.sizes)
        if fastest is not None:
            unsettled = "" if race.settled else f"; {UNSETTLED}"
            question = f"why micro-batches of {count(fastest)} for steps of {count(race.effective_batch)}"
            answers.append((question, f"{rates}{unsettled}"))
    return answers


def _loader(finalist: Finalist) -> str:
    """`2 threads, no workers`."""
    workers = count_of(finalist.num_workers, "worker") if finalist.num_workers else "no workers"
    prefetch = f", prefetch {finalist.prefetch_factor}" if finalist.prefetch_factor not in (None, PREFETCH_FACTOR) else ""
    context = f", start method {finalist.multiprocessing_context}" if finalist.multiprocessing_context else ""
    return f"{count_of(finalist.intra_op_threads, 'thread')}, {workers}{prefetch}{context}"


def _rehearsal(calibration: Calibration, rehearsal: Rehearsal) -> tuple[str, str]:
    """Result of a plan that was run completely."""
    sizes = rehearsal.settings.micro_batches
    steps = f"{len(sizes)} x {count(max(sizes))}" if len(sizes) > 1 else count(sizes[0])
    question, outcome = f"result of the rehearsal of {steps}", rehearsal.outcome
    if not isinstance(outcome, Fits):
        return question, f"it failed in the {'evaluation' if rehearsal.evaluating else 'training'}: {long(outcome)}"
    peak = format_bytes(outcome.peak.bytes_on(rehearsal.settings.device))
    budget = calibration.budget(rehearsal.settings.device)
    of_budget = "" if budget is None else f" of a budget of {format_bytes(budget.budget_bytes)}"
    evaluation = f", with evaluation in batches of {count(rehearsal.settings.eval_batch)}"
    waits = "" if rehearsal.wait_share is None else f", {rehearsal.wait_share:.0%} of each step waits for its batch"
    run = rehearsal.micro_batches_run
    reduced = f"; {run} of {len(sizes)} micro-batches of each step were run" if run < len(sizes) else ""
    return question, f"peak {peak}{of_budget}{evaluation}; {_rate(outcome.samples_per_s)}{waits}{reduced}"


def _rate(samples_per_s: float | None) -> str:
    return "not run" if samples_per_s is None else f"{count(samples_per_s)} samples/s"


def _budget(budget: Budget, margin: float) -> str:
    return (
        f"the limit of {format_bytes(budget.limit_bytes)} ({budget.learned_from}) minus {format_bytes(budget.others_bytes)} "
        f"of other processes and a margin of {margin:.0%} ({format_bytes(budget.margin_bytes)})"
        + (f", minus {format_bytes(budget.reserved_bytes)} for the growth in an epoch" if budget.reserved_bytes else "")
    )


def _finding(calibration: Calibration, finding: Finding) -> list[tuple[str, str]]:
    setup = _setup(finding.device, finding.allocator)
    train = _capacity(calibration, finding, finding.train, "train")
    answers = [
        (f"how memory grows with the batch on {setup}", _model(finding.train_memory)),
        (f"why batch {count(finding.train.batch)} for training on {setup}", train),
    ]
    budget = calibration.budget(finding.device)
    if finding.heap_growth > 1 and budget is not None:
        usable = format_bytes(finding.usable_bytes(budget.budget_bytes))
        answer = (
            f"the shapes of batches change, so the heap grows: after many steps, a batch needs {finding.heap_growth:.2f} times "
            f"its memory after a few steps. Therefore a few steps may use {usable} of the budget"
        )
        answers.append((f"why not all of the budget on {setup}", answer))
    if finding.eval is not None:
        evaluation = _capacity(calibration, finding, finding.eval, "eval")
        answers.append((f"why batch {count(finding.eval.batch)} for evaluation", evaluation))
    return answers


def _setup(device: str, allocator: str) -> str:
    return f"{device} with allocator {allocator}"


def _model(model: MemoryModel) -> str:
    per_sample = model.predict(2) - model.predict(1)
    fitted = f"fitted to {count_of(len(model.points), 'probe')}" if model.points else "not fitted to any probe"
    error = "" if model.relative_error is None else f", with an error of at most {model.relative_error:.1%}"
    return (
        f"{format_bytes(model.base_bytes)} without a batch, plus about {format_bytes(per_sample)} per sample; the shape of the "
        f"curve is from {model.source}, {fitted}{error}; runs with this allocator differ by {model.spread:.1%}"
    )


def _capacity(calibration: Calibration, finding: Finding, capacity: Capacity, mode: str) -> str:
    limit = limit_sentence(calibration, finding, "eval" if mode == "eval" else "train")
    source = f"probe {capacity.measured_by}" if capacity.measured_by else "a rehearsal"
    text = (
        f"run by {source} with a peak of {format_bytes(capacity.peak_bytes)} at "
        f"{count(capacity.samples_per_s)} samples/s ({format_seconds(capacity.batch / capacity.samples_per_s)} per step); "
        f"limited by {limit}"
    )
    if capacity.ruled_out is None:
        return text
    return f"{text}; a rehearsal at micro-batch {count(capacity.ruled_out)} ran out of memory"
