"""Conservation of work: a bound that no number of workers can beat, from the times of a step and of its fetching alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.records.speed import StepTime
from batchcal.measure.race.noise import disturbed

INSTANT_S: Final = 1e-12


@dataclass(frozen=True)
class WorkBound:
    """Times of one micro-batch by number of intra-op threads. The training process itself fetches it."""

    times: Mapping[int, StepTime]
    """Not empty."""
    cores: float
    on_host: bool
    """True if the step computes on the cores that workers would use."""

    @property
    def threads(self) -> tuple[int, ...]:
        return tuple(sorted(self.times))

    def without_workers_s(self, threads: int) -> float:
        """Return the measured seconds per sample without workers."""
        time = self.times[threads]
        return time.step_s / time.micro_batch

    def in_doubt(self, fewer: int, more: int) -> bool:
        """Return True if `fewer` threads may be ahead of `more` only because another process used a core meanwhile: more threads
        wait for the one that this process delays."""
        return fewer < more and any(disturbed(self.times[threads].foreign_share) for threads in (fewer, more))

    def least_s(self, threads: int, workers: int) -> float:
        """Return the minimum seconds per sample with workers: the step never waits, workers fetch in parallel, and a core does
        one thing at a time."""
        # A worker fetches with one thread. The time of one thread is the work to compute: more threads compute as much or more.
        fewest = self.times[self.threads[0]]
        fetch_s, fetch_cpu_s = fewest.fetch_s / fewest.micro_batch, fewest.fetch_cpu_s / fewest.micro_batch
        step_cpu_s = _rest_s(fewest) * fewest.threads if self.on_host else 0.0
        return max(_rest_s(self.times[threads]), fetch_s / workers, (step_cpu_s + fetch_cpu_s) / self.cores, INSTANT_S)


def _rest_s(time: StepTime) -> float:
    """Return the seconds per sample of a step without fetching."""
    return (time.step_s - time.fetch_s) / time.micro_batch
