"""Conservation of work: what no number of workers can beat, from what a step and its fetching take alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.speed import StepTime
from batchcal.measure.race.noise import disturbed

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

    def in_doubt(self, fewer: int, more: int) -> bool:
        """Whether `fewer` threads may have come out ahead of `more` only because somebody else had a core meanwhile: more threads
        wait for the one that it keeps from running."""
        return fewer < more and any(disturbed(self.times[threads].foreign_share) for threads in (fewer, more))

    def least_s(self, threads: int, workers: int) -> float:
        """Seconds a sample with workers, at the least: the step waits for nobody, workers fetch side by side, and a core does one
        thing at a time."""
        # A worker fetches with one thread, and what one thread takes is what there is to compute: more compute as much or more.
        fewest = self.times[self.threads[0]]
        fetch_s, fetch_cpu_s = fewest.fetch_s / fewest.micro_batch, fewest.fetch_cpu_s / fewest.micro_batch
        step_cpu_s = _rest_s(fewest) * fewest.threads if self.on_host else 0.0
        return max(_rest_s(self.times[threads]), fetch_s / workers, (step_cpu_s + fetch_cpu_s) / self.cores, INSTANT_S)


def _rest_s(time: StepTime) -> float:
    """Seconds a sample of a step beside fetching."""
    return (time.step_s - time.fetch_s) / time.micro_batch
