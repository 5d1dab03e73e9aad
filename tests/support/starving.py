"""Memory that runs out where a test wants it to, and a guard that recovers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from batchcal.core.clock import SystemClock
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, SampleShare
from batchcal.train.recovery.guardian import OOMGuardian, Recovery
from batchcal.values.settings import WhenSplit
from batchcal.workload.task import Task


class Memory(nn.Module):
    """The identity. Memory runs out at its `at`-th use in `where`, or whenever a batch has more than `most` samples."""

    def __init__(self, where: str = "", *, at: int | None = None, most: int | None = None) -> None:
        super().__init__()
        self.where, self.at, self.most, self.uses = where, at, most, 0

    def forward(self, value: Tensor) -> Tensor:
        self.take("forward", len(value))
        passed = value.clone()
        if passed.requires_grad:
            passed.register_hook(self._backward)
        return passed

    def _backward(self, gradient: Tensor) -> None:
        self.take("backward", len(gradient))

    def take(self, where: str, samples: int) -> None:
        if where != self.where:
            return
        self.uses += 1
        if self.uses == self.at or (self.most is not None and samples > self.most):
            raise RuntimeError(
                f"[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate {samples} bytes"
            )


class Plenty:
    """Expects everything to fit that has at most `most` samples."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most = most

    def fits(self, micro_batch: MicroBatch) -> bool:
        return micro_batch.samples <= self.most

    def near_limit(self) -> bool:
        return True


class Guarded:
    """A guard of groups around a guardian, with what it told."""

    def __init__(self, task: Task, *, most: int = 1 << 30, batchnorm: WhenSplit = "stop", undivided: str = "") -> None:
        self.told: list[Recovery] = []
        self.guardian = OOMGuardian(
            task,
            torch.device("cpu"),
            Plenty(most),
            clock=SystemClock(),
            report=self.told.append,
            batchnorm=batchnorm,
            undivided=undivided,
        )

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
        return self.guardian.run(passes, micro_batch)

    def before_update(self) -> None:
        return None
