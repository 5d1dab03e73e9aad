"""A machine and a task that are numbers: for tests, and for `--dry-run`, which shows what would be asked."""

from __future__ import annotations

import time
from collections.abc import Sequence

from batchcal.calibration.memory_model import ShapePoint
from batchcal.calibration.schema import Isolation, Mode
from batchcal.calibration.speed import StepTime
from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits, Outcome, OutOfMemory, Peak
from batchcal.measure.children.probe import (
    Examination,
    LapReport,
    LapRequest,
    ProbeReport,
    ProbeRequest,
    RehearsalReport,
    RehearsalRequest,
    RehearsalTimes,
)
from batchcal.measure.race.race import LEAST_ROUNDS
from batchcal.workload.facts import TaskFacts


class FakeProbe:
    """Needs `base + batch x per_sample` bytes; a step is said to take `step_overhead_s + batch x sample_s` seconds.

    `mapped`: all of it in blocks so large that none is left behind in the heap.
    """

    def __init__(
        self,
        *,
        base_bytes: int = 230 * MIB,
        bytes_per_sample: float = 1.5 * MIB,
        train_samples: int | None = 60_000,
        eval_samples: int | None = 10_000,
        sample_s: float = 0.001,
        step_overhead_s: float = 0.01,
        eval_share: float = 0.3,
        mapped: bool = False,
        sleep_s: float = 0.0,
    ) -> None:
        self._base = base_bytes
        self._per_sample = bytes_per_sample
        self._train_samples = train_samples
        self._eval_samples = eval_samples
        self._sample_s = sample_s
        self._overhead_s = step_overhead_s
        self._eval_share = eval_share
        self._mapped = mapped
        self._sleep_s = sleep_s
        self.asked: list[ProbeRequest] = []

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        facts = TaskFacts(
            train_samples=self._train_samples,
            eval_samples=self._eval_samples,
            parameters=1_000_000,
            parameter_bytes=4_000_000,
            optimizer="assumed",
            batch_bytes_per_sample=self._per_sample / 100,
            worst_case="first-samples",
        )
        return Examination(
            facts=facts,
            base_bytes=self._base,
            base_accelerator_bytes=None if device.startswith("cpu") else self._base,
            shapes={mode: self._shape(mode) for mode in ("train", "eval")},
            samples_per_s=1 / self._sample_s,
            shape_source="assumed",
        )

    def measure(self, request: ProbeRequest) -> ProbeReport:
        self.asked.append(request)
        time.sleep(self._sleep_s)
        share = 1.0 if request.mode == "train" else self._eval_share
        demand = int(self._base + request.batch * self._per_sample * share)
        step_s = self._overhead_s + request.batch * self._sample_s
        outcome: Outcome
        if demand > request.budget_bytes:
            outcome = OutOfMemory(source="budget", detail="assumed", peak=Peak(demand_bytes=demand))
        else:
            outcome = Fits(peak=Peak(demand_bytes=demand), steps=3, step_s=step_s, samples_per_s=request.batch / step_s)
        return ProbeReport(outcome=outcome, isolation=Isolation(launcher="fake", fence=()), wall_s=step_s * 3)

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        return None

    def lap(self, request: LapRequest) -> LapReport:
        """A step takes what `measure` says, whatever the policy; an update nothing to speak of."""
        times = [
            StepTime(
                micro_batch=size,
                threads=threads,
                step_s=self._overhead_s + size * self._sample_s,
                fetch_s=0.0,
                fetch_cpu_s=0.0,
                update_s=1e-6,
                steps=3,
            )
            for _ in range(max(1, min(request.rounds, LEAST_ROUNDS)))
            for size in request.micro_batches
            for threads in request.threads or (1,)
        ]
        return LapReport(times=tuple(times))

    def rehearse(self, request: RehearsalRequest) -> RehearsalReport:
        """As `measure` says of the largest micro-batch."""
        plan = request.plan
        time.sleep(self._sleep_s)
        demand = int(self._base + max(plan.micro_batches) * self._per_sample)
        step_s = sum(self._overhead_s + size * self._sample_s for size in plan.micro_batches)
        samples = sum(plan.micro_batches)
        outcome: Outcome
        if demand > request.budget_bytes:
            outcome = OutOfMemory(source="budget", detail="assumed", peak=Peak(demand_bytes=demand))
        else:
            outcome = Fits(peak=Peak(demand_bytes=demand), steps=1, step_s=step_s, samples_per_s=samples / step_s)
        rates = tuple(size / (self._overhead_s + size * self._sample_s) for size in request.eval_batches)
        times = RehearsalTimes(wait_share=0.0, eval_samples_per_s=rates)
        return RehearsalReport(outcome=outcome, times=times, wall_s=step_s * 2)

    def close(self) -> None:
        return None

    def _shape(self, mode: Mode) -> tuple[ShapePoint, ...]:
        per_sample = self._per_sample * (1.0 if mode == "train" else self._eval_share)
        return tuple(
            ShapePoint(batch=batch, bytes=batch * per_sample, mapped_bytes=batch * per_sample * self._mapped) for batch in (8, 64)
        )
