"""Real probes of small tasks in fenced children, within budgets of a few gibibytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from batchcal.calibration.schema import OFF, Mode
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits
from batchcal.measure.capacity.attempts import SearchTarget
from batchcal.measure.children.child_probe import ChildProbe
from batchcal.measure.children.probe import Observation, ProbeRequest
from batchcal.measure.children.setting import ChildSetting
from batchcal.measure.deadline import Deadline
from batchcal.measure.search.settling import STEPS_BEFORE_EVALUATION
from batchcal.workload.spec.reference import Scalar, TaskReference
from tests.support.zygotes import lent

REPOSITORY = Path(__file__).resolve().parents[2]
ROOM = 4 * GIB


class Fixed:
    """A memory group in which nothing but the child moves: so far below its limit, whatever the neighbours do."""

    def __init__(self, above_bytes: int) -> None:
        self.limit_bytes = GIB + above_bytes

    def hard_bytes(self) -> int:
        return GIB

    def swap_bytes(self) -> int:
        return 0

    def oom_kills(self) -> int | None:
        return None


def setting_of(spec: str, *, activation_checkpointing: str = OFF, **arguments: Scalar) -> ChildSetting:
    return ChildSetting(
        reference=TaskReference(
            spec=spec if ":" in spec else f"tests.measure.tasks:{spec}", directory=str(REPOSITORY), arguments=dict(arguments)
        ),
        device="cpu",
        seed=0,
        activation_checkpointing=activation_checkpointing,
        intra_op_threads=1,
        smallest_batch=2,
    )


@contextmanager
def probing(
    spec: str,
    *,
    activation_checkpointing: str = OFF,
    above_bytes: int = ROOM,
    isolation: str | None = None,
    notes: list[str] | None = None,
    own_zygote: bool = False,
    host_allowed_bytes: int | None = None,
    deadline: Deadline | None = None,
    **arguments: Scalar,
) -> Iterator[ChildProbe]:
    probe = ChildProbe(
        {"cpu": setting_of(spec, activation_checkpointing=activation_checkpointing, **arguments)},
        Fixed(above_bytes),
        host_budget_bytes=ROOM,
        host_allowed_bytes=host_allowed_bytes,
        deadline=deadline,
        note=(notes if notes is not None else []).append,
        environ={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        isolation=isolation,
    )
    if lent and not own_zygote and isolation is None:
        probe._launchers.running["default"] = lent[0]
    with closing(probe):
        yield probe


def request(
    batch: int,
    *,
    mode: Mode = "train",
    budget: int = 2 * GIB,
    allowed: int | None = None,
    samples: int = 4,
    train_batch: int | None = None,
    allocator: str = "default",
    workers: int = 0,
    deadline_s: float | None = 60.0,
) -> ProbeRequest:
    target = SearchTarget("cpu", allocator, mode, budget, samples, train_batch=train_batch, num_workers=workers)
    return ProbeRequest(
        setup=target.setup(batch),
        mode=mode,
        samples=samples,
        allowed_bytes=allowed or budget + 128 * MIB,
        budget_bytes=budget,
        train_steps=0 if train_batch is None else STEPS_BEFORE_EVALUATION,
        deadline_s=deadline_s,
    )


def fitting(report: Observation) -> Fits:
    assert isinstance(report.outcome, Fits), report.outcome
    return report.outcome
