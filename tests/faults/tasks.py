"""Tasks that misbehave, each in one way: every factory, where `tests.faults.tasks:NAME` finds it. Run in children only.

They behave in the warm-up, whose batches hold `WARM_UP` samples at most, and misbehave at larger ones.
"""

from __future__ import annotations

from tests.faults.tasks_memory import (
    big_arrays,
    creeping,
    failing_allocation,
    greedy_while_loading,
    leaking,
    mapped,
    out_of_memory_in,
)
from tests.faults.tasks_plain import mean_loss, plain, slow
from tests.faults.tasks_unusual import branching, compiled, contrastive, normed, recurrent, stream
from tests.faults.tasks_user_code import (
    closing_descriptors,
    filling,
    hanging,
    in_a_session_of_its_own,
    leaving,
    many_threads,
    nested,
    refusing,
    segfaulting,
    shouting,
    tampering,
    unprivileged,
)
from tests.faults.tasks_workers import images, in_workers, many_tensors, unpicklable

__all__ = [
    "big_arrays",
    "branching",
    "closing_descriptors",
    "compiled",
    "contrastive",
    "creeping",
    "failing_allocation",
    "filling",
    "greedy_while_loading",
    "hanging",
    "images",
    "in_a_session_of_its_own",
    "in_workers",
    "leaking",
    "leaving",
    "many_tensors",
    "many_threads",
    "mapped",
    "mean_loss",
    "nested",
    "normed",
    "out_of_memory_in",
    "plain",
    "recurrent",
    "refusing",
    "segfaulting",
    "shouting",
    "slow",
    "stream",
    "tampering",
    "unpicklable",
    "unprivileged",
]
