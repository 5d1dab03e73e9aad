"""Probes that are numbers or a script, for the tests of a calibration; nothing here starts a process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import path_of
from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.calibration.schema import Calibration, Isolation, Measurement, Mode, Options
from batchcal.calibration.store import Loaded, journal_path, load
from batchcal.core.clock import ManualClock
from batchcal.core.progress import Field, Recorded
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Accelerator, Environment
from batchcal.guard.outcome import Fits, Infrastructure, KilledFromOutside, Outcome, OutOfMemory, Peak, Suspect, UserCodeFailed
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import Examination, Observation, Probe, ProbeRequest, RehearsalRequest
from batchcal.measure.obtain import obtain
from batchcal.measure.options import options
from batchcal.measure.result import CalibrationResult, Need
from batchcal.workload.facts import TaskFacts
from batchcal.workload.spec.reference import TaskReference
from tests.support.calibrations import an_environment

FAKE: Final = Isolation(launcher="fake", fence=())
BEGAN: Final = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
Script = Callable[[ProbeRequest, int], Outcome | None]
"""request, how often this size was asked in this mode (from 1) -> what becomes of it. None: what the numbers say."""

KILLED: Final = KilledFromOutside(signal=9)
SUSPECT: Final = Suspect(detail="died by SIGSEGV\nfar below", near_limit=0.93)
BROKEN: Final = Infrastructure(detail="the zygote has died")
FAILED: Final = UserCodeFailed(
    phase="measure", error="ValueError: too many", traceback="Traceback ...\nValueError: too many", hint="fewer"
)


class ScriptedProbe(FakeProbe):
    """A FakeProbe that follows a script where there is one, moves a clock, and tells what was asked of it."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        base_bytes: int = 230 * MIB,
        bytes_per_sample: float = 1.5 * MIB,
        train_samples: int | None = 60_000,
        eval_samples: int | None = 10_000,
        clock: ManualClock | None = None,
        takes_s: float = 0.0,
        examination_takes_s: float = 0.0,
        mapped: bool = False,
    ) -> None:
        super().__init__(
            base_bytes=base_bytes,
            bytes_per_sample=bytes_per_sample,
            train_samples=train_samples,
            eval_samples=eval_samples,
            mapped=mapped,
        )
        self._script = script
        self._clock = clock
        self._takes_s = takes_s
        self._examination_takes_s = examination_takes_s
        self._times: dict[tuple[str, str, Mode, int], int] = {}
        self.examined: list[tuple[str, str]] = []
        self.closed = 0

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        self.examined.append((device, allocator))
        if self._clock is not None:
            self._clock.move(self._examination_takes_s)
        return super().examine(device, allocator, budget_bytes, limit_s)

    def measure(self, request: ProbeRequest) -> Observation:
        key = (request.device, request.allocator, request.mode, request.batch)
        self._times[key] = self._times.get(key, 0) + 1
        if self._clock is not None:
            self._clock.move(self._takes_s)
        outcome = None if self._script is None else self._script(request, self._times[key])
        if outcome is None:
            return super().measure(request)
        self.requests.append(request)
        return Observation(outcome=outcome, isolation=FAKE, wall_s=0.5)

    def close(self) -> None:
        self.closed += 1

    def sizes(self, mode: Mode = "train") -> list[int]:
        """The batches that were asked in `mode`, in order."""
        return [request.batch for request in self.requests if request.mode == mode]


class MachineProbe(FakeProbe):
    """A machine with noise, whose static curve is wrong by a factor and whose fence stops what goes above it."""

    def __init__(
        self,
        demand: Callable[[int, Mode], float],
        paper: Callable[[int, Mode], float],
        *,
        base_bytes: int,
        train_samples: int | None,
        eval_samples: int | None,
        noise: Callable[[], float] = lambda: 1.0,
    ) -> None:
        super().__init__(base_bytes=base_bytes)
        self._demand = demand
        self._paper = paper
        self._samples = (train_samples, eval_samples)
        self._noise = noise

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        facts = TaskFacts(
            train_samples=self._samples[0],
            eval_samples=self._samples[1],
            parameters=1000,
            parameter_bytes=4000,
            optimizer="SGD",
            batch_bytes_per_sample=4096.0,
            worst_case="scan",
        )
        modes: tuple[Mode, ...] = ("train", "eval")
        return Examination(
            facts=facts,
            base_bytes=self._base,
            base_accelerator_bytes=None,
            shapes={
                mode: tuple(ShapePoint(batch=b, bytes=self._paper(b, mode)) for b in (2, 8, 64, 512, 4096)) for mode in modes
            },
            samples_per_s=100_000.0,
            shape_source="fake-tensor",
        )

    def rehearse(self, request: RehearsalRequest) -> Observation:
        demand = int(self._base + self._demand(request.plan.micro_batch, "train") * self._noise())
        if demand > request.budget_bytes:
            over = OutOfMemory(source="budget", detail="it ran, but held too much", peak=Peak(demand_bytes=demand))
            return Observation(outcome=over, isolation=FAKE, times=None, wall_s=0.01)
        return super().rehearse(request)

    def measure(self, request: ProbeRequest) -> Observation:
        self.requests.append(request)
        demand = int(self._base + (self._demand(request.batch, request.mode)) * self._noise())
        peak = Peak(demand_bytes=demand, begin_bytes=self._base)
        outcome: Outcome
        if demand > request.allowed_bytes:
            outcome = OutOfMemory(source="fence", detail="MemoryError")
        elif demand > request.budget_bytes:
            outcome = OutOfMemory(source="budget", detail="it ran, but held too much", peak=peak)
        else:
            step_s = 0.001 + request.batch * 1e-5
            outcome = Fits(peak=peak, steps=3, step_s=step_s, samples_per_s=request.batch / step_s)
        return Observation(outcome=outcome, isolation=FAKE, wall_s=0.01)

    def close(self) -> None:
        return None


class Harness:
    """One project folder with a task in it, and calibrations of it with scripted probes on a machine that is laid out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "batchcal.toml").write_text("", encoding="utf-8")
        (folder / "task.py").write_text("def task():\n    raise SystemExit('never imported here')\n", encoding="utf-8")
        self.reference = TaskReference(spec="task.py:task", directory=str(folder))
        self.environment: Environment = an_environment()
        self.clock = ManualClock(BEGAN)
        self.progress = Recorded()
        self.path = path_of(self.reference, {})
        self.journal = journal_path(self.path)
        self.environ: dict[str, str] = {}

    def calibrate(
        self,
        probe: Probe | None = None,
        asked: Options | None = None,
        *,
        output: Path | None = None,
        force: bool = False,
        dry_run: bool = False,
        need: Need | None = None,
    ) -> CalibrationResult:
        """A calibration here; the clock stands still but for what a probe moves it by."""
        return obtain(
            self.reference,
            asked or options(GIB),
            need or Need(force=force, dry_run=dry_run),
            environment=self.environment,
            output=output,
            probe=probe,
            progress_context=lambda: nullcontext(self.progress),
            clock=self.clock,
            environ=self.environ,
        )

    def names(self) -> list[str]:
        """The names of the events so far."""
        return [name for name, _ in self.progress.events]

    def events(self, name: str) -> list[dict[str, Field]]:
        """The fields of every event of that name."""
        return [fields for told, fields in self.progress.events if told == name]

    def files(self) -> set[str]:
        """Everything that lies in the project, relative to it."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}


def saved(harness: Harness, path: Path | None = None) -> Calibration:
    """What lies in the file, which is whole and ours."""
    found = load(path or harness.path, trust=find_trust(harness.environ))
    assert isinstance(found, Loaded)
    return found.calibration


def fits(batch: int, demand_bytes: int = 300 * MIB, *, begin_bytes: int | None = None) -> Fits:
    return Fits(peak=Peak(demand_bytes=demand_bytes, begin_bytes=begin_bytes), steps=3, step_s=0.1, samples_per_s=batch / 0.1)


def an_accelerator(*, total_bytes: int = 16 * GIB, free_bytes: int = 15 * GIB, index: int = 0) -> Accelerator:
    return Accelerator(
        kind="cuda",
        index=index,
        name="A card",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        capability="9.0",
        mig=False,
    )


def best_of(measurements: tuple[Measurement, ...], mode: Mode = "train") -> int:
    """The largest batch that is told to have fitted."""
    return max((one.batch for one in measurements if one.mode == mode and one.outcome.kind == "fits"), default=0)
