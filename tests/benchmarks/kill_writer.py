"""Kill the writer of calibration.json and of its journal at random times while readers read: how often is it not whole?

`python -m tests.benchmarks.kill_writer --kills 1000` prints one JSON line with the counts. A bad read is one that does not give a
whole, trusted calibration; an old read gives less than what the writer had been told to be saved before the read began. Both
must be 0, and so must the temporary files that are left once they are an hour old.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from batchcal.calibration import journal as journals
from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.store import Loaded, journal_path, load, save
from batchcal.core.files import leftovers
from tests.support.calibrations import MADE_AT, a_calibration, fingerprint, measurement, options

KEY: Final = Key(b"the key that the writer has", configured=True, source="")
LONGEST_LIFE_S: Final = 0.05
"""A writer that shares two cores with the readers saves every 5 ms or so: kills fall into every part of some write."""
SAVES_A_LIFE: Final = 5
MOST_LINES: Final = 60


class Counters:
    """Numbers that processes share and that outlive whoever wrote them. Each has one writer at a time."""

    NAMES: Final = ("saved", "appended", "reads", "reads2", "bad", "bad2", "old", "old2")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(self.NAMES))

    def __getitem__(self, name: str) -> int:
        (value,) = struct.unpack_from("q", self._memory, 8 * self.NAMES.index(name))
        assert isinstance(value, int)
        return value

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * self.NAMES.index(name), value)


def fork(work: Callable[[], None]) -> int:
    """A child that does `work` and leaves without the parent's clean-up."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)


def number_of(path: Path) -> int | None:
    """Which save is at `path`; None: nothing that may be used."""
    found = load(path, trust=Trust(KEY))
    return int(found.calibration.wall_s) if isinstance(found, Loaded) and not found.notices else None


def write(path: Path, counters: Counters, anew: bool) -> None:
    number = counters["saved"]
    with journals.Journal.open(
        journal_path(path), fingerprint=fingerprint(), options=options(), at=MADE_AT, key=KEY, restart=anew
    ) as journal:
        line = max((old.sequence for old in journal.past.measurements), default=0)
        while True:
            line += 1
            journal.append(measurement(sequence=line))
            counters["appended"] = line
            number += 1
            save(a_calibration(wall_s=float(number)), path, key=KEY)
            counters["saved"] = number


def read(path: Path, counters: Counters, suffix: str) -> None:
    while True:
        at_least = counters["saved"]
        number = number_of(path)
        counters["reads" + suffix] += 1
        counters["bad" + suffix] += number is None
        counters["old" + suffix] += number is not None and number < at_least


def run(kills: int, folder: Path, seed: int) -> dict[str, int | float]:
    """Counts over `kills` lives of a writer in `folder`."""
    drawn, counters, path = random.Random(seed), Counters(), folder / "calibration.json"
    began = time.monotonic()
    save(a_calibration(wall_s=0.0), path, key=KEY)
    longest_life_s = max(LONGEST_LIFE_S, SAVES_A_LIFE * (time.monotonic() - began))  # else a slow disk would see no save
    readers = [fork(partial(read, path, counters, suffix)) for suffix in ("", "2")]
    bad = old = bad_journals = old_journals = most_leftovers = 0
    kept = 0
    try:
        for _ in range(kills):
            anew = kept > MOST_LINES
            if anew:
                counters["appended"] = 0
            writer = fork(partial(write, path, counters, anew))
            time.sleep(drawn.uniform(0, longest_life_s))
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            number = number_of(path)
            bad += number is None
            old += number is not None and number < counters["saved"]
            if number is not None:  # saved, and killed before it could say so
                counters["saved"] = number
            if journal_path(path).exists():
                lines = [
                    one.sequence for one in journals.read(journal_path(path), fingerprint(), at=MADE_AT, key=KEY).measurements
                ]
                kept = len(lines)
                bad_journals += lines != list(range(1, kept + 1))
                old_journals += kept < counters["appended"]
            most_leftovers = max(most_leftovers, len(list(leftovers(path))))
    finally:
        for reader in readers:
            os.kill(reader, signal.SIGKILL)
            os.waitpid(reader, 0)
    return {
        "kills": kills,
        "saved": counters["saved"],
        "reads": counters["reads"] + counters["reads2"] + kills,
        "bad_reads": bad + counters["bad"] + counters["bad2"],
        "old_reads": old + counters["old"] + counters["old2"],
        "bad_journals": bad_journals,
        "old_journals": old_journals,
        "leftovers": most_leftovers,
        "leftovers_after_an_hour": collected(path),
        "wall_s": round(time.monotonic() - began, 1),
        "seed": seed,
    }


def collected(path: Path) -> int:
    """Temporary files that are left once they have grown old and somebody writes again."""
    for target in (path, journal_path(path)):
        for name in leftovers(target):
            os.utime(name, (0, 0))
    save(a_calibration(), path, key=KEY)
    journals.Journal.open(journal_path(path), fingerprint=fingerprint(), options=options(), at=MADE_AT, key=KEY).close()
    return sum(len(list(leftovers(target))) for target in (path, journal_path(path)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        counts = run(asked.kills, Path(folder), seed)
    print(json.dumps(counts))
    return int(
        any(counts[name] for name in ("bad_reads", "old_reads", "bad_journals", "old_journals", "leftovers_after_an_hour"))
    )


if __name__ == "__main__":
    sys.exit(main())
