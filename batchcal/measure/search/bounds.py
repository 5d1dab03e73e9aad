"""Bounds of the search for a capacity, and the reason for the upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from batchcal.calibration.records.memory_model import UNBOUNDED, ShapePoint
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Finding, LimitedBy, Options
from batchcal.detect.environment import SharedMemory
from batchcal.measure.search.capacity import EXPANSION, PRECISION, Bounds
from batchcal.measure.search.evaluation import EVAL_EXPANSION, EVAL_PRECISION, largest_after_training
from batchcal.measure.search.prior import Prior
from batchcal.workload.data.in_flight import PREFETCH_FACTOR, SHM_SHARE, batches_in_flight
from batchcal.workload.facts import TaskFacts


def bounds_for(
    device: str,
    budget_bytes: int,
    options: Options,
    facts: TaskFacts,
    *,
    trained: Finding | None,
    shape: Sequence[ShapePoint],
    prior: Prior,
    shm: SharedMemory | None,
    most_trained: int | None = None,
    largest_useful: int | None = None,
    most_measurable: int | None = None,
    rule: SizeRule | None = None,
) -> Bounds:
    """Return the bounds for training, or for the evaluation after the training in `trained`. Training has at most `most_trained`
    samples per micro-batch, and at most `largest_useful`: larger ones do not train faster. It has at most `most_measurable`: with
    larger ones, the data of an epoch is too short for a measurement.

    Both obey `--multiple-of` and the `rule` of the task's sizes. A multiple above the upper bound is not kept: `multiple_of` is 1
    then. If a process accepts one size only, evaluation has the size of the training.
    """
    samples = facts.train_samples if trained is None else (facts.eval_samples or facts.train_samples)
    ceilings: list[tuple[int, LimitedBy]] = [(samples or UNBOUNDED, "dataset")]
    if options.max_batch is not None:
        ceilings.append((options.max_batch, "max-batch"))
    if most_trained is not None and trained is None:
        ceilings.append((most_trained, "max-batch"))
    if most_measurable is not None:
        ceilings.append((most_measurable, "dataset"))
    if largest_useful is not None and trained is None:
        ceilings.append((largest_useful, "speed"))
    if trained is not None and prior.fragments:
        ceilings.append((largest_after_training(trained, shape, prior.ratio, budget_bytes), "memory"))
    if trained is not None and device == "cpu" and options.objective == "throughput":
        # On a CPU, the speed of an evaluation is nearly constant, and each trial trains several steps before it.
        ceilings.append((trained.train.batch, "speed"))
    if options.workers and shm is not None and facts.batch_bytes_per_sample > 0:
        in_flight = batches_in_flight(options.workers, PREFETCH_FACTOR) * facts.batch_bytes_per_sample
        ceilings.append((max(1, int(shm.free_bytes * SHM_SHARE / in_flight)), "shm"))
    rule = rule or SizeRule()
    if rule.fixed is not None:
        ceilings.append((rule.fixed, "model"))
    if trained is not None and rule.one_size:
        ceilings.append((trained.train.batch, "model"))
    ceiling, reason = min(ceilings, key=lambda pair: pair[0])
    multiple = lcm(options.multiple_of, rule.multiple_of)
    floor = trained.train.batch if trained is not None and rule.one_size else max(multiple, rule.least)
    return Bounds(
        budget_bytes=budget_bytes,
        floor=min(floor, ceiling),
        ceiling=ceiling,
        ceiling_reason=reason,
        multiple_of=multiple if multiple <= ceiling else 1,
        headroom=options.headroom,
        over_budget_reason="memory" if device.startswith("cpu") else "accelerator-memory",
        precision=PRECISION if trained is None else EVAL_PRECISION,
        expansion=EXPANSION if trained is None else EVAL_EXPANSION,
        start=None if trained is None else trained.train.batch,
    )
