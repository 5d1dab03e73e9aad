"""Conservation of work: what no number of workers can beat, from what a step and its fetching take alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.speed import StepTime

INSTANT_S: Final = 1e-12


@dataclass(frozen=True)
class Work:
    """One micro-batch by number of intra-op threads, fetched in the training process itself."""

    times: Mapping[int, StepTime]
    """Not empty."""
    cores: float
    on_host: bool
    """Whether the step computes on the cores that workers would use."""

    @property
    def threads(self) -> tuple[int, ...]:
        return tuple(sorted(self.times))

    def alone_s(self, threads: int) -> float:
        """Seconds a sample without workers, as timed."""
        time = self.times[threads]
        return time.step_s / time.micro_batch

    def least_s(self, threads: int, workers: int) -> float:
        """Seconds a sample with workers, at the least: the step waits for nobody, workers fetch side by side, and a core does one
        thing at a time."""
        time = self.times[threads]
        rest_s = (time.step_s - time.fetch_s) / time.micro_batch
        fetch_s, fetch_cpu_s = time.fetch_s / time.micro_batch, time.fetch_cpu_s / time.micro_batch
        return max(rest_s, fetch_s / workers, (self._rest_cpu_s() + fetch_cpu_s) / self.cores, INSTANT_S)

    def _rest_cpu_s(self) -> float:
        """Core-seconds a sample that the step computes beside fetching: with few threads that is what it takes; more threads
        compute as much or more."""
        if not self.on_host:
            return 0.0
        fewest = self.threads[0]
        time = self.times[fewest]
        return (time.step_s - time.fetch_s) / time.micro_batch * fewest
