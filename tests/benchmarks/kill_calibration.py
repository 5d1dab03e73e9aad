"""Kill whole calibrations at random times and start them again: is what was measured ever lost, or misread?

`python -m tests.benchmarks.kill_calibration` kills 1,000 with the fake probe and 50 that measure for real, and prints one JSON
line. A bad read is a calibration that is neither absent nor whole and trusted, or a journal with a gap; an old one holds less
than a life had been told was kept (each probe is on disk before it is announced). What a killed calibration leaves running one
second later is counted too. All of these must be 0.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.journal import read
from batchcal.calibration.keys import Trust, find_or_make_trust
from batchcal.calibration.schema import Calibration, Options
from batchcal.calibration.store import Loaded, Missing, journal_path, load
from batchcal.core.clock import SystemClock
from batchcal.core.units import MIB
from batchcal.detect.detect import detect
from batchcal.detect.environment import Environment
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import Probe
from batchcal.measure.obtain import obtain
from batchcal.measure.options import options
from batchcal.measure.result import Need
from batchcal.values.calibration_events import CalibrateEnded, CalibrationEvent, ProbeEnded
from batchcal.workload.spec.identity import identify
from batchcal.workload.spec.reference import TaskReference
from tests.support.leftovers import TOKEN, look, settled

REPOSITORY: Final = Path(__file__).resolve().parents[2]
FAKE_STEP_S: Final = 0.003
FAKE_LIFE_S: Final = 0.12
"""A calibration with the fake probe takes about this long, so that kills fall before, into and after it."""
REAL_LIFE_S: Final = 12.0
REAL_ALLOWANCE: Final = 700 * MIB
UNREACHED: Final = 2**20
"""A batch that no search of ours comes near."""

Row = dict[str, int | float]


class Told:
    """What a life said of itself, in memory that outlives it."""

    NAMES: Final = ("saved", "accepted", "best")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(self.NAMES))

    def __getitem__(self, name: str) -> int:
        (value,) = struct.unpack_from("q", self._memory, 8 * self.NAMES.index(name))
        assert isinstance(value, int)
        return value

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * self.NAMES.index(name), value)

    def event(self, event: CalibrationEvent, /) -> None:
        """Listens to a calibration: a probe that has ended is kept, a calibration that has ended is saved."""
        if isinstance(event, ProbeEnded):
            self["accepted"] = event.sequence
            if (event.mode, event.outcome) == ("train", "fits"):
                self["best"] = max(self["best"], event.batch)
        elif isinstance(event, CalibrateEnded):
            self["saved"] = 1


class Lives:
    """A task that is calibrated again and again. Each generation asks for another largest batch: another calibration."""

    def __init__(
        self, folder: Path, reference: TaskReference, environment: Environment, probe: Callable[[], Probe | None], asked: Options
    ) -> None:
        self._path = folder / "calibration.json"
        self._reference = reference
        self._environment = environment
        self._probe = probe
        self._asked = asked
        self._trust: Trust = find_or_make_trust(os.environ)
        self.told = Told()
        self.generation = 0

    @property
    def options(self) -> Options:
        return self._asked.model_copy(update={"max_batch": UNREACHED + self.generation})

    def live(self) -> int:
        """A process that calibrates; its pid."""
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setsid()
            os.chdir(self._path.parent)
            obtain(
                self._reference,
                self.options,
                Need(),
                environment=self._environment,
                output=self._path,
                probe=self._probe(),
                progress_context=lambda: nullcontext(self.told),
            )
        finally:
            os._exit(0)

    def read(self) -> tuple[Calibration | None, bool]:
        """What is on disk, and whether that is bad."""
        found = load(self._path, trust=self._trust)
        if isinstance(found, Loaded):
            return found.calibration, found.calibration.status == "partial"
        return None, not isinstance(found, Missing) or self.generation > 0

    def kept(self) -> list[int]:
        """The numbers of the measurements that the next life will find."""
        here = fingerprint_of(self._environment, identify(self._reference), self.options, environ=os.environ)
        old = read(journal_path(self._path), here, at=SystemClock().now(), key=self._trust.key).measurements
        return [one.sequence for one in old]

    def check(self) -> tuple[int, int]:
        """Bad and old reads, after a death. Begins the next generation where this one is whole."""
        calibration, bad = self.read()
        old = 0
        ours = calibration is not None and calibration.options == self.options
        if ours and calibration is not None:
            finding = calibration.finding()
            old += finding is None or finding.train.batch < self.told["best"]
        elif self.told["saved"]:
            old += 1
        else:
            kept = self.kept()
            bad |= kept != list(range(1, len(kept) + 1))
            old += len(kept) < self.told["accepted"]
        if ours:
            self.generation += 1
            for name in Told.NAMES:
                self.told[name] = 0
        return int(bad), old


def run(lives: Lives, kills: int, longest_life_s: float, drawn: random.Random) -> Row:
    """Kills so many lives; then one is let live to its end."""
    bad = old = reads = killed = left = 0
    began = time.monotonic()
    while killed < kills:
        token = uuid.uuid4().hex
        os.environ[TOKEN] = token
        before = look(token=token)
        pid, dies = lives.live(), time.monotonic() + drawn.uniform(0, longest_life_s)
        while (now := time.monotonic()) < dies and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            bad += lives.read()[1]
            reads += 1
            time.sleep(min(longest_life_s / 50, dies - now))
        killed += os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        left += bool(settled(partial(look, token=token), before).processes)
        now_bad, now_old = lives.check()
        bad, old, reads = bad + now_bad, old + now_old, reads + 1
    os.waitpid(lives.live(), 0)
    whole, _ = lives.read()
    return {
        "kills": kills,
        "calibrations": lives.generation + 1,
        "reads": reads,
        "bad_reads": bad,
        "old_reads": old,
        "left_running": left,
        "ended_whole": int(whole is not None and whole.options == lives.options),
        "wall_s": round(time.monotonic() - began, 1),
    }


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def with_fake(kills: int, drawn: random.Random) -> Row:
    environment = detect()
    with a_folder() as folder:
        (folder / "task.py").write_text("def task(): ...\n", encoding="utf-8")
        reference = TaskReference(spec="task.py:task", directory=str(folder))
        asked = options(environment.memory.limit.value, device="cpu", memory_limit_bytes=1024 * MIB)
        lives = Lives(folder, reference, environment, lambda: FakeProbe(sleep_s=FAKE_STEP_S), asked)
        return run(lives, kills, FAKE_LIFE_S, drawn)


def with_real(kills: int, drawn: random.Random) -> Row:
    environment = detect()
    with a_folder() as folder:
        reference = TaskReference(spec="batchcal.workload.examples.handwriting:task", directory=str(REPOSITORY))
        asked = options(
            environment.memory.limit.value,
            device="cpu",
            memory_limit_bytes=REAL_ALLOWANCE,
            samples=3,
            allocator="default",  # what is killed is the search; the races before it would take most of a life
            objective="memory",
        )
        lives = Lives(folder, reference, environment, lambda: None, asked)
        return run(lives, kills, REAL_LIFE_S, drawn)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fake", type=int, default=1000, help="calibrations with the fake probe to kill")
    parser.add_argument("--real", type=int, default=50, help="calibrations that measure for real to kill")
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
    drawn = random.Random(seed)
    rows = {
        name: of(kills, drawn) for name, of, kills in (("fake", with_fake, asked.fake), ("real", with_real, asked.real)) if kills
    }
    print(json.dumps({"benchmark": "kill_calibration", "seed": seed, **rows}))
    return int(
        any(row["bad_reads"] or row["old_reads"] or row["left_running"] or not row["ended_whole"] for row in rows.values())
    )


if __name__ == "__main__":
    sys.exit(main())
