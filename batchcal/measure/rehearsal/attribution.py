"""Gain of a plan over PyTorch's defaults: all knobs turned back together and, on request, each knob alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from batchcal.calibration.records.rehearsal import NO_TIME, Attribution, TurnedBack
from batchcal.calibration.schema import OFF, Calibration
from batchcal.detect.environment import Environment
from batchcal.guard.outcome import Fits
from batchcal.measure.rehearsal.stage import Stage, divided
from batchcal.plan.plan import Plan

ROUNDS: Final = 2
"""Maximum number of rounds if each knob is timed. The gain of a knob is reported with two digits."""
EXPECTED_SHARE: Final = 0.8
"""Share of the budget that a size that was never run may be expected to hold. The fence is active all the same."""
Name = Literal["allocator", "micro_batch", "num_workers", "intra_op_threads", "activation_checkpointing"]


def usual_threads(environment: Environment) -> int:
    """Return the intra-op threads that torch uses by default: OMP_NUM_THREADS, else all physical cores, whatever the quota."""
    threads = environment.software.thread_environment.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(threads) if threads.isdigit() and int(threads) > 0 else max(1, environment.cpu.physical)


@dataclass
class _Variant:
    """A plan to time, and its results."""

    plan: Plan | None
    """None: it cannot be timed, for the reason in `why`."""
    why: str = ""
    keep_activations: bool = False
    rates: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def samples_per_s(self) -> float | None:
        return max(self.rates, default=None)

    @property
    def allocator(self) -> str:
        return "" if self.plan is None else self.plan.allocator


def attribute(
    stage: Stage, calibration: Calibration, plan: Plan, *, by_knob: bool, was_just_rehearsed: bool
) -> Attribution | None:
    """Measure the gain of `plan`. None: no time was left, or the plan itself could not be timed.

    Args:
        by_knob: measure also the part of each knob in the gain. Otherwise the defaults run once, right after the rehearsal.
        was_just_rehearsed: the rehearsal counts as a turn of the plan.
    """
    knobs = _knobs(calibration, plan)
    by_knob = by_knob or "activation_checkpointing" in knobs  # its price in time and its gain in memory are its purpose
    # A knob with PyTorch's default is not turned back.
    turned = {name: _turned_back(calibration, plan, (name,)) for name in knobs}
    usual = next(iter(turned.values())) if len(knobs) == 1 else _turned_back(calibration, plan, tuple(knobs)) if knobs else None
    rehearsed = plan.predicted_samples_per_s if plan.status == "verified" and was_just_rehearsed else None
    chosen = _Variant(plan, rates=[] if rehearsed is None else [rehearsed])
    rounds = 0
    if usual is not None and by_knob:
        rounds = _run(stage, chosen, usual, [variant for variant in turned.values() if variant is not usual])
    elif usual is not None:
        rounds = _compare(stage, chosen, usual)
    if knobs and chosen.samples_per_s is None:
        return None
    rate = chosen.samples_per_s or plan.predicted_samples_per_s
    if rate is None:
        return None
    return Attribution(
        effective_batch=plan.effective_batch,
        samples_per_s=rate,
        peak_bytes=chosen.peak_bytes if "activation_checkpointing" in knobs else None,
        usual_samples_per_s=usual.samples_per_s if usual is not None else rate,
        knobs=tuple(
            TurnedBack(
                knob=name,
                chosen=knobs[name][0],
                usual=knobs[name][1],
                samples_per_s=variant.samples_per_s,
                peak_bytes=variant.peak_bytes if name == "activation_checkpointing" else None,
                why=variant.why,
            )
            for name, variant in turned.items()
        ),
        rounds=rounds,
        why=usual.why if usual is not None else "",
    )


def _knobs(calibration: Calibration, plan: Plan) -> dict[Name, tuple[str, str]]:
    """Return the knobs that differ from PyTorch's defaults: the chosen and the usual value."""
    threads = usual_threads(calibration.environment)
    undivided = _undivided(calibration, plan, plan.allocator)
    values: dict[Name, tuple[str, str]] = {
        "allocator": (plan.allocator, "default"),
        "micro_batch": (str(plan.micro_batch), str(undivided)),
        "num_workers": (str(plan.num_workers), "0"),
        "intra_op_threads": (str(plan.intra_op_threads), str(threads)),
        "activation_checkpointing": (calibration.options.activation_checkpointing, OFF),
    }
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def _turned_back(calibration: Calibration, plan: Plan, names: tuple[Name, ...]) -> _Variant:
    update: dict[str, object] = {}
    allocator = "default" if "allocator" in names else plan.allocator
    if calibration.finding(device=plan.device, allocator=allocator) is None:
        return _Variant(None, why=f"no batch size was verified under {allocator}")
    undivided = _undivided(calibration, plan, allocator)
    largest = undivided if "micro_batch" in names else min(plan.micro_batch, undivided)
    update |= {"allocator": allocator}
    if "num_workers" in names:
        update |= {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None}
    if "intra_op_threads" in names:
        update |= {"intra_op_threads": usual_threads(calibration.environment)}
    keep_activations = "activation_checkpointing" in names
    return _Variant(divided(plan, largest).model_copy(update=update), keep_activations=keep_activations)


def _undivided(calibration: Calibration, plan: Plan, allocator: str) -> int:
    """Return the micro-batch of a user who does not divide: the effective batch, or the part of it that fits. If there was no
    time to measure that, the part that is expected to fit."""
    finding = calibration.finding(device=plan.device, allocator=allocator)
    effective_batch = sum(plan.micro_batches)
    if finding is None:
        return effective_batch
    if finding.train.limited_by not in ("time-limit", "max-probes", "speed"):
        return min(effective_batch, finding.train.batch)
    expected = finding.train_memory.largest_within(plan.budget_bytes * EXPECTED_SHARE, ceiling=effective_batch)
    return min(effective_batch, max(finding.train.batch, expected))


def _compare(stage: Stage, chosen: _Variant, usual: _Variant) -> int:
    """Time the defaults once, and the plan too if its rehearsal did not. Return the number of rounds."""
    for variant in (usual, *(() if chosen.rates else (chosen,))):
        _time(stage, variant)
    return len(usual.rates)


def _run(stage: Stage, chosen: _Variant, usual: _Variant, rest: Sequence[_Variant]) -> int:
    """Run rounds in which each variant is timed once, as many as there is time for. Return their number."""
    # First the baseline of the gain. Then one policy at a time, in case not all can be present at once. Then in reverse.
    ordered = [usual, *sorted(rest, key=lambda variant: variant.allocator != usual.allocator), chosen]
    plans = [variant.plan for variant in ordered if variant.plan is not None]
    stage.probe.prepare(tuple(dict.fromkeys(plan.allocator for plan in plans)), max(plan.budget_bytes for plan in plans))
    for number in range(ROUNDS):
        for variant in reversed(ordered) if number else ordered:
            _time(stage, variant)
    return len(usual.rates)


def _time(stage: Stage, variant: _Variant) -> None:
    """Time a variant, if it can run and there is time."""
    if variant.plan is None or variant.why:
        return
    if stage.left_s() <= 0:
        variant.why = "" if variant.rates else NO_TIME
        return
    outcome = stage.turn(variant.plan, keep_activations=variant.keep_activations).outcome
    if isinstance(outcome, Fits):
        variant.rates.append(outcome.samples_per_s)
        variant.peak_bytes = outcome.peak.bytes_on(variant.plan.device)
    else:
        variant.why = outcome.kind.replace("-", " ")
