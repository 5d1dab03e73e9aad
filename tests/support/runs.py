"""Trainings that never were, told as a loop tells them: two tasks in 1 GiB, a resize, recoveries, prediction that learns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from batchcal.core.clock import ManualClock
from batchcal.core.progress import Field, Progress
from batchcal.core.units import GIB, MIB
from batchcal.train.report.jsonl import JsonlLog
from batchcal.train.report.monitor import TrainingMonitor
from batchcal.values.training_events import TrainingEvent
from tests.support.events import training_event

STARTED_AT: Final = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
EFFECTIVE: Final = 512
BUDGET_BYTES: Final = 839 * MIB
Told = tuple[str, dict[str, Field]]


def a_start(**overrides: Field) -> dict[str, Field]:
    """`training_started` of a run of six epochs of 60 steps."""
    return {
        "kind": "run",
        "format": 1,
        "spec": "batchcal.workload.examples.multiimage:task",
        "seed": 7,
        "epochs": 6,
        "epoch": 0,
        "effective_batch": EFFECTIVE,
        "micro_batch": 128,
        "accumulation_steps": 4,
        "train_samples": 60 * EFFECTIVE,
        "budget_bytes": BUDGET_BYTES,
        "limit_bytes": GIB,
        "allocator": "tcmalloc",
        "device": "cpu",
        "lr_rule": "linear",
        "steps_per_epoch": 60,
        "resumed_at_sample": 0,
        "batchcal": "0.2.0",
        **overrides,
    }


def a_step(place: int, *, per_epoch: int = 60, micro: int = 128, noise: random.Random, **overrides: Field) -> Told:
    """The step number `place` of the run, from 0: losses fall, weights of tasks drift apart, memory follows the size."""
    fall = 0.08 + 1.9 / (1 + place / 40)
    volumes, scans = fall * (1 + noise.gauss(0, 0.06)), 1.4 * fall * (1 + noise.gauss(0, 0.10))
    weight = 1 + 0.5 * min(place / 300, 1.0)
    peak = int((240 + 4.1 * micro + noise.gauss(0, 6)) * MIB)
    wall_s = 0.31 + 8.0 / micro + abs(noise.gauss(0, 0.012))
    return "step", {
        "epoch": place // per_epoch,
        "step": place % per_epoch + 1,
        "global_step": place + 1,
        "samples": EFFECTIVE,
        "samples_seen": (place % per_epoch + 1) * EFFECTIVE,
        "loss": weight * volumes + (2 - weight) * scans,
        "loss_scans": scans,
        "loss_volumes": volumes,
        "weight_scans": 2 - weight,
        "weight_volumes": weight,
        "grad_norm": 3 * fall + abs(noise.gauss(0, 0.3)),
        "grad_norm_scans": 1.2 * fall,
        "grad_norm_volumes": 2 * fall,
        "lr": 1e-3 * min((place + 1) / 30, 1.0),
        "micro_batches": EFFECTIVE // micro,
        "micro_batch": micro,
        "predicted_bytes": int((244 + (4.1 + 0.5 / (1 + place / 25)) * micro) * MIB),
        "peak_bytes": peak,
        "wall_s": wall_s,
        "samples_per_s": EFFECTIVE / wall_s,
        **overrides,
    }


def a_training(*, epochs: int = 6, per_epoch: int = 60, tasks: bool = True, trouble: bool = True) -> Iterator[Told]:
    """Every event of one process that trains from the beginning to the end.

    Args:
        tasks: losses and weights by task, too.
        trouble: out of memory in the third epoch, a smaller size for a while, and larger again.
    """
    noise = random.Random(0)
    micro, total = 128, epochs * per_epoch
    bad, better = int(total * 0.4), int(total * 0.7)
    began = a_start(epochs=epochs, steps_per_epoch=per_epoch, train_samples=per_epoch * EFFECTIVE)
    yield "training_started", began
    losses: list[float] = []
    for place in range(total):
        epoch, step = place // per_epoch, place % per_epoch + 1
        where: dict[str, Field] = {"epoch": epoch, "step": step}
        if trouble and place == bad:
            why = "RuntimeError: DefaultCPUAllocator: can't allocate memory"
            lost: dict[str, Field] = {"action": "split", "safe": 64, "lost_s": 0.21, "why": why}
            yield "recovered", {**where, "phase": "backward", "samples": 128, **lost}
            yield "resized", {**where, "was": 128, "now": 64, "why": "out of memory at 128"}
            micro = 64
        if trouble and place == better:
            yield "resized", {**where, "was": 64, "now": 96, "why": "40 calm steps, 31% of the budget is free"}
            micro = 96
        name, fields = a_step(place, per_epoch=per_epoch, micro=micro, noise=noise)
        if not tasks:
            fields = {key: value for key, value in fields.items() if not key.endswith(("_scans", "_volumes"))}
        losses.append(float(fields["loss"] or 0.0))
        yield name, fields
        if step == per_epoch:
            mean = sum(losses) / len(losses)
            losses = []
            told: dict[str, Field] = {"loss": mean, "steps": per_epoch, "samples_per_s": EFFECTIVE / 0.39}
            yield "epoch_ended", {"epoch": epoch, **told, "eval_accuracy": 1 - 0.5 / (epoch + 1.5), "eval_loss": mean * 1.1}
            yield "checkpoint_saved", {"path": "runs/first/checkpoint.pt", "epoch": epoch + 1, "samples_seen": 0}
    ended: dict[str, Field] = {"samples_per_s": EFFECTIVE / 0.39, "peak_bytes": 801 * MIB, "wall_s": total * 0.4}
    yield "training_ended", {**ended, "stopped_early": False, "stop_reason": None}


def tell(listener: Progress[TrainingEvent] | JsonlLog, told: Iterator[Told], clock: ManualClock | None = None) -> None:
    """Every event in its turn; the clock moves by what a step took."""
    for name, fields in told:
        wall_s = fields.get("wall_s") if name == "step" else 0.002
        if clock is not None and isinstance(wall_s, float):
            clock.move(wall_s)
        if isinstance(listener, JsonlLog):
            listener.event(name, fields)
        else:
            listener.event(training_event(name, fields, unknown=True))


def write_run(path: Path, told: Iterator[Told] | None = None) -> Path:
    """The log of a run, as a monitor writes it."""
    clock = ManualClock(STARTED_AT)
    with TrainingMonitor(path, clock=clock) as monitor:
        tell(monitor, a_training() if told is None else told, clock)
    return path
