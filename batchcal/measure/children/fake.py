"""Simulated machine and task: for tests, and for `--dry-run`, which shows the requests of a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.calibration.schema import Isolation, Mode
from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits, Outcome, OutOfMemory, Peak, UserCodeFailed
from batchcal.measure.children.probe import (
    Examination,
    Observation,
    PlanTimes,
    ProbeRequest,
    RehearsalRequest,
    SizeRefused,
    TimingReport,
    TimingRequest,
)
from batchcal.measure.heap.trial import HeapReport, HeapRequest
from batchcal.measure.race.race import LEAST_ROUNDS
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest
from batchcal.workload.facts import TaskFacts

ASSUMED: Final = Isolation(launcher="fake", fence=())


class FakeProbe:
    """Probe of a task that needs `base + batch x per_sample` bytes and reports `step_overhead_s + batch x sample_s` s per step.

    `takes`: (size, size of the warm-up) -> True if the task runs the size. None: it runs every size.
    `mapped`: all memory is in blocks so large that none stays behind in the heap.
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
        takes: Callable[[int, int], bool] | None = None,
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
        self._takes = takes
        self._rule = SizeRule()
        self.requests: list[ProbeRequest] = []

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        smallest = self._rule.smallest
        if self._refuses((smallest,)):
            raise SizeRefused(f"ValueError: no batch of {smallest}", known="Traceback ...")
        facts = TaskFacts(
            train_samples=self._train_samples,
            eval_samples=self._eval_samples,
            parameters=1_000_000,
            parameter_bytes=4_000_000,
            optimizer="assumed",
            batch_bytes_per_sample=self._per_sample / 100,
            worst_case="scan",
        )
        return Examination(
            facts=facts,
            base_bytes=self._base,
            base_accelerator_bytes=None if device.startswith("cpu") else self._base,
            shapes={mode: self._shape(mode) for mode in ("train", "eval")},
            samples_per_s=1 / self._sample_s,
            shape_source="assumed",
            refused=tuple(size for size in (smallest + 1,) if self._refuses((size,)) and self._rule == SizeRule()),
        )

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        return tuple(size for size in sizes if not self._refuses((size,), one_size=True))

    def set_size_rule(self, rule: SizeRule) -> None:
        self._rule = rule

    def _refuses(self, sizes: Sequence[int], *, one_size: bool = False) -> bool:
        """True if the task fails at one of `sizes` in a process that warms up as a child does."""
        if self._takes is None:
            return False
        warm_up = sizes[0] if one_size or self._rule.one_size else self._rule.smallest
        return not all(self._takes(size, warm_up) for size in (warm_up, *sizes))

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        """See `Probe`."""
        return self.measure(request) if isinstance(request, ProbeRequest) else self.rehearse(request)

    def measure(self, request: ProbeRequest) -> Observation:
        self.requests.append(request)
        time.sleep(self._sleep_s)
        share = 1.0 if request.mode == "train" else self._eval_share
        demand = int(self._base + request.batch * self._per_sample * share)
        step_s = self._overhead_s + request.batch * self._sample_s
        trained = () if request.train_batch is None else (request.train_batch,)
        outcome: Outcome
        if self._refuses((request.batch, *trained), one_size=request.one_size):
            outcome = UserCodeFailed(phase="measure", error=f"ValueError: no batch of {request.batch}", traceback="Traceback ...")
        elif demand > request.budget_bytes:
            outcome = OutOfMemory(source="budget", detail="assumed", peak=Peak(demand_bytes=demand))
        else:
            outcome = Fits(peak=Peak(demand_bytes=demand), steps=3, step_s=step_s, samples_per_s=request.batch / step_s)
        return Observation(outcome=outcome, isolation=ASSUMED, wall_s=step_s * 3)

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        return None

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        return None

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        """Report step times as in `measure`, under any policy. An update takes almost no time."""
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
            if not self._refuses((size,))
            for threads in request.threads or (1,)
        ]
        return TimingReport(times=tuple(times))

    def rehearse(self, request: RehearsalRequest) -> Observation:
        """Report the demand of the largest micro-batch, as in `measure`."""
        plan = request.plan
        time.sleep(self._sleep_s)
        demand = int(self._base + max(plan.micro_batches) * self._per_sample)
        step_s = sum(self._overhead_s + size * self._sample_s for size in plan.micro_batches)
        samples = sum(plan.micro_batches)
        outcome: Outcome
        if self._refuses((*request.micro_batches, *request.eval_batches)):
            outcome = UserCodeFailed(phase="measure", error="ValueError: no such batch", traceback="Traceback ...")
        elif demand > request.budget_bytes:
            outcome = OutOfMemory(source="budget", detail="assumed", peak=Peak(demand_bytes=demand))
        else:
            outcome = Fits(peak=Peak(demand_bytes=demand), steps=1, step_s=step_s, samples_per_s=samples / step_s)
        rates = tuple(size / (self._overhead_s + size * self._sample_s) for size in request.eval_batches)
        times = PlanTimes(wait_share=0.0, eval_samples_per_s=rates)
        return Observation(outcome=outcome, isolation=ASSUMED, times=times, wall_s=step_s * 2)

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        return WorkersReport(check=PromiseCheck(promise="same-samples-in-workers", result="ok"), workers=LoaderWorkers())

    def train_varied(self, request: HeapRequest) -> HeapReport:
        return HeapReport(readings=())

    def close(self) -> None:
        return None

    def _shape(self, mode: Mode) -> tuple[ShapePoint, ...]:
        per_sample = self._per_sample * (1.0 if mode == "train" else self._eval_share)
        return tuple(
            ShapePoint(batch=batch, bytes=batch * per_sample, mapped_bytes=batch * per_sample * self._mapped) for batch in (8, 64)
        )
