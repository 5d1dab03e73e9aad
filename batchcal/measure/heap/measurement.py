"""Heap growth of a finding, measured by a training with random batches in a child."""

from __future__ import annotations

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Finding, usable_bytes
from batchcal.core.errors import GuardError
from batchcal.core.units import format_bytes
from batchcal.machine.allocator import BUILT_IN
from batchcal.measure.capacity.attempts import Attempts
from batchcal.measure.children.probe import Examination
from batchcal.measure.heap.growth import NO_ROOM_NEEDED, growth_factor, without_kept_samples
from batchcal.measure.heap.trial import SHARE_OF_ANSWER, HeapReport, HeapRequest, seconds_for
from batchcal.measure.outcomes import allowed_for
from batchcal.values.calibration_events import PhaseBegan


def heap_growth(
    attempts: Attempts, finding: Finding, examination: Examination, *, budget_bytes: int, left_s: float, rule: SizeRule
) -> float:
    """Measure `Finding.heap_growth`. Return 1 if it cannot matter: other allocators, batches of one shape, or a budget with room
    for more than was ever observed. If it cannot be measured, return 1 and add a note.

    Raises:
        Interrupted: by a signal.
    """
    device, allocator, trained, base = finding.device, finding.allocator, finding.train, examination.base_bytes
    has_room = base + NO_ROOM_NEEDED * (trained.peak_bytes - base) <= budget_bytes
    if device != "cpu" or allocator not in BUILT_IN or examination.shapes_change is False or has_room:
        return 1.0
    if examination.shapes_change is None:
        attempts.note(
            "it is unknown whether the shapes of batches change, because samples take long to read or fail. If they change, the "
            "heap grows over many steps; use a larger --margin then"
        )
        return 1.0
    unknown = f"{device} under {allocator}: the shapes of batches change, and the growth of the heap over many steps is unknown"
    limit_s = seconds_for(left_s)
    if not limit_s:
        attempts.note(f"{unknown}: no time was left to measure it. Use a longer --time-limit, or a larger --margin")
        return 1.0
    target = int(trained.batch * SHARE_OF_ANSWER)
    request = HeapRequest(
        device=device,
        allocator=allocator,
        batch=trained.batch if rule.one_size else rule.at_most(target) or min(rule.smallest, trained.batch),
        allowed_bytes=allowed_for(budget_bytes),
        limit_s=limit_s,
    )
    why = f"random batches of {request.batch}, whose shapes change"
    attempts.progress.event(PhaseBegan(phase="heap", mode="train", why=why))
    try:
        report = attempts.probe.train_varied(request)
    except GuardError as error:
        report = HeapReport(readings=(), why_ended=error.what)
    readings = without_kept_samples(
        report.readings,
        batch=request.batch,
        kept_bytes_per_sample=examination.facts.kept_bytes_per_sample,
        samples=examination.facts.train_samples,
    )
    growth = growth_factor(readings, base)
    if growth is None:
        attempts.note(f"{unknown}: {report.why_ended or 'the steps take too long'}. Use a larger --margin")
        return 1.0
    if growth > 1:
        first, last = report.readings[0], report.readings[-1]
        free = format_bytes(budget_bytes - usable_bytes(budget_bytes, base, growth))
        attempts.note(
            f"{device} under {allocator}: the shapes of batches change, so the heap grows over many steps. A training with "
            f"batches of {request.batch} held {format_bytes(first.peak_bytes)} after {first.steps} steps and "
            f"{format_bytes(last.peak_bytes)} after {last.steps} steps. {free} of the budget stays free for this growth"
        )
    return growth
