"""The allocator policy of each device: the requested one, else the winner of a race, in this run or before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import RacedPolicies, Speeds
from batchcal.calibration.schema import Options
from batchcal.core.clock import Clock
from batchcal.core.progress import Progress
from batchcal.machine.allocator import AUTO, compared
from batchcal.measure.children.probe import Examination, Probe
from batchcal.measure.race.policies import NO_TIME, policy_race
from batchcal.values.calibration_events import CalibrationEvent, PhaseBegan, RaceKept


def keep_nothing(raced: RacedPolicies) -> None:
    """Do nothing: for callers without a journal."""


@dataclass
class DevicePolicies:
    probe: Probe
    options: Options
    clock: Clock
    progress: Progress[CalibrationEvent]
    keep: Callable[[RacedPolicies], None] = keep_nothing
    """Callback that writes a race to disk if it had time for every policy."""
    past: tuple[RacedPolicies, ...] = ()
    """Races of an interrupted calibration. They are part of this one and are not run again."""
    speeds: list[Speeds] = field(default_factory=list)
    """Results of each policy, device by device."""
    _fastest: dict[str, str] = field(default_factory=dict)

    def to_race(self, device: str) -> tuple[str, ...]:
        """Return the policies to choose from, if none is chosen yet. A single policy is timed, too, because plans need the
        fastest micro-batch. Empty: there is nothing to measure."""
        if device in self._fastest or (self.options.allocator != AUTO and self.options.objective != "throughput"):
            return ()
        raced = self.options.allocator == AUTO and device == "cpu"
        return tuple(policy.name for policy in compared()) if raced else (self.policy(device),)

    def was_raced(self, device: str, policies: tuple[str, ...]) -> bool:
        """Return True if an interrupted calibration has raced these policies."""
        return any(_is_of(past_race, device, policies) for past_race in self.past)

    def policy(self, device: str) -> str:
        """Return the policy for `device`: the requested one, else the fastest, else `default`."""
        return self._fastest.get(device, "default") if self.options.allocator == AUTO else self.options.allocator

    def data_is_heavy(self, device: str) -> bool:
        """Return True if workers may gain much under the policy of `device`. False if the user has set their number."""
        if self.options.workers is not None or self.options.objective != "throughput":
            return False
        place = (device, self.policy(device))
        return any(speeds.data_is_heavy for speeds in self.speeds if (speeds.device, speeds.allocator) == place)

    def race(
        self,
        device: str,
        policies: tuple[str, ...],
        examination: Examination,
        *,
        budget_bytes: int,
        limit_s: float,
        rule: SizeRule | None = None,
    ) -> tuple[str, ...]:
        """Find the fastest of `policies`, and the fastest size under each, at sizes that are far from the budget.

        Return notes for the reader.

        Raises:
            BatchcalError: as the probe's `time_sizes`.
        """
        raced = next((past_race for past_race in self.past if _is_of(past_race, device, policies)), None)
        if raced is None:
            self.progress.event(PhaseBegan(phase="race", device=device, why="allocator policies: " + ", ".join(policies)))
            chosen, speeds = policy_race(
                self.probe,
                examination,
                device=device,
                policies=policies,
                budget_bytes=budget_bytes,
                options=self.options,
                rule=rule or SizeRule(multiple_of=self.options.multiple_of, least=self.options.multiple_of),
                limit_s=limit_s,
                clock=self.clock,
                progress=self.progress,
            ).run()
            raced = RacedPolicies(device=device, allocator=chosen or policies[0], speeds=speeds)
            if not any(map(_is_late, speeds)):
                self.keep(raced)
        else:
            self.progress.event(RaceKept(device=device, allocator=raced.allocator))
        self.speeds.extend(raced.speeds)
        self._fastest[device] = raced.allocator
        return tuple(_notes(raced.speeds))


def _is_of(raced: RacedPolicies, device: str, policies: tuple[str, ...]) -> bool:
    return raced.device == device and tuple(item.allocator for item in raced.speeds) == policies


def _is_late(speeds: Speeds) -> bool:
    return speeds.why == NO_TIME or not (speeds.times or speeds.why)


def _notes(speeds: tuple[Speeds, ...]) -> list[str]:
    late = [item.allocator for item in speeds if _is_late(item)]
    notes = [f"no time was left to compare the allocator policies {', '.join(late)}"] if late else []
    return notes + [
        f"no size could be timed under the allocator policy {item.allocator}: {item.why}"
        for item in speeds
        if item.left == "failed" and not _is_late(item)
    ]
