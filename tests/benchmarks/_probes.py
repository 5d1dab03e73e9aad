"""batchcal's own probes, without the search around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.schema import Mode
from batchcal.detect.detect import detect
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.budget import host_budget
from batchcal.measure.capacity.attempts import SearchTarget
from batchcal.measure.children.child_probe import ChildProbe
from batchcal.measure.children.probe import Examination, Observation, ProbeRequest
from batchcal.measure.children.setting import ChildSetting
from batchcal.measure.options import MARGIN_CPU, samples_for
from batchcal.measure.search.prior import Prior
from batchcal.workload.spec.reference import TaskReference
from tests.benchmarks._report import say


@dataclasses.dataclass
class Bench:
    """One task on the CPU under one allocator policy."""

    probe: ChildProbe
    allocator: str
    budget_bytes: int
    samples: int
    examination: Examination
    workers: int
    threads: int

    def measure(self, batch: int, *, mode: Mode = "train", allowed_bytes: int | None = None) -> Observation:
        target = SearchTarget(
            "cpu",
            self.allocator,
            mode,
            self.budget_bytes,
            self.samples,
            num_workers=self.workers,
            intra_op_threads=self.threads,
        )
        request = ProbeRequest(
            setup=target.setup(batch),
            mode=mode,
            samples=self.samples,
            train_steps=0,
            allowed_bytes=allowed_bytes or self.budget_bytes,
            budget_bytes=self.budget_bytes,
            deadline_s=120.0,
        )
        return self.probe.measure(request)

    def on_paper(self, mode: Mode = "train") -> MemoryModel:
        """The model before anything was measured."""
        prior = Prior.of("cpu", self.allocator)
        return MemoryModel(
            base_bytes=self.examination.base_bytes,
            ratio=prior.ratio,
            shape=prior.shape(self.examination.shapes[mode]),
            source=self.examination.shape_source,
        )


@contextmanager
def bench(
    reference: TaskReference, *, threads: int | None = None, workers: int = 0, allocator: str = "default", seed: int = 0
) -> Iterator[Bench]:
    """A probe of `reference` within the limit that holds for this process."""
    environment = detect()
    setting = ChildSetting(
        reference=reference,
        device="cpu",
        seed=seed,
        intra_op_threads=threads or environment.optimal_threads,
        smallest_batch=2,
    )
    budget = host_budget(environment, margin=MARGIN_CPU, memory_limit_bytes=None)
    with closing(memory_meter()) as meter:
        probe = ChildProbe({"cpu": setting}, meter, host_budget_bytes=budget.budget_bytes, note=say)
        with closing(probe):
            examination = probe.examine("cpu", allocator, budget.budget_bytes, 10.0)
            yield Bench(
                probe=probe,
                allocator=allocator,
                budget_bytes=budget.budget_bytes,
                samples=samples_for(budget.limit_bytes),
                examination=examination,
                workers=workers,
                threads=setting.intra_op_threads,
            )
