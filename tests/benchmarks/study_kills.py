"""Two workers at a study of sixty trials, killed again and again, on a journal file and on PostgreSQL; and the same study left
alone. All trials must be accounted for, none run twice unless the run before died, and the results be of one kind.

    python -m tests.benchmarks.study_kills --trials 60
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import psutil

from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import finish, say
from tests.benchmarks._studies import TRAINED_SAMPLES, command, folder_of, in_state, tiny, told, trials_of, wrong_steps
from tests.support import postgres

BETWEEN_S: Final = (3.0, 9.0)
SAMPLES: Final = 8000
EPOCHS: Final = 9


def study(trials: int, storage: str, *, kills: bool, seed: int) -> dict[str, object]:
    """A row: what became of it."""
    chance = random.Random(seed)
    more = f'storage = "{storage}"' if storage else ""
    killed = 0
    with folder_of(tiny(trials=trials, epochs=EPOCHS, samples=SAMPLES, more=more)) as folder:
        began = time.monotonic()
        with (folder / "out").open("w", encoding="utf-8") as out, (folder / "err").open("w", encoding="utf-8") as err:
            process = subprocess.Popen(
                command("run", "--workers", "2", "--json"),
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=err,
            )
            next_s = time.monotonic() + 12
            while process.poll() is None:
                time.sleep(0.2)
                if kills and time.monotonic() >= next_s:
                    killed += _kill_one(process.pid, chance)
                    next_s = time.monotonic() + chance.uniform(*BETWEEN_S)
        wall_s = time.monotonic() - began
        said = (folder / "err").read_text(encoding="utf-8")
        if process.returncode:
            say(said[-2000:])
        document = told((folder / "out").read_text(encoding="utf-8")) if process.returncode == 0 else {"trials": [], "counts": {}}
        log = "".join(path.read_text(encoding="utf-8", errors="replace") for path in Path(folder).glob(".batchcal/logs/*"))
    if "Traceback" in log:
        say(log[-2000:])
    found = trials_of(document)
    lost = [one["number"] for one in in_state(found, "lost")]
    again = [one["again"] for one in found if one["again"] is not None]
    originals = {one["number"] for one in found if one["again"] is None}
    ended = {one["number"] if one["again"] is None else one["again"] for one in in_state(found, "complete", "pruned", "failed")}
    values = [value for one in in_state(found, "complete") if isinstance(value := one["value"], float)]
    return {
        "storage": storage.partition(":")[0] or "journal",
        "kills": killed,
        "exit": process.returncode,
        "trials": len(originals),
        "accounted_for": len(ended),
        "lost": len(lost),
        "run_again": len(again),
        "twice_for_nothing": len(ended) + len(lost) - len(found) if found else None,
        "complete": len(in_state(found, "complete")),
        "pruned": len(in_state(found, "pruned")),
        "failed": len(in_state(found, "failed")),
        "best": round(min(values), 5) if values else None,
        "wrong_steps": len(wrong_steps(found, round(SAMPLES * TRAINED_SAMPLES))),
        "wall_s": round(wall_s),
    }


def _kill_one(leader: int, chance: random.Random) -> int:
    try:
        workers = [one for one in psutil.Process(leader).children() if "batchcal.hpo.workers.process" in one.cmdline()]
        if workers:
            chance.choice(workers).kill()
            return 1
    except psutil.Error:
        pass
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    why = postgres.why_not()
    with nullcontext("") if why else postgres.server() as url:
        for storage in ["", *([url] if url else [])]:
            for kills in (False, True):
                rows.append(study(arguments.trials, storage, kills=kills, seed=arguments.seed))
                say(str(rows[-1]))
                if storage:
                    _empty(url)
    finish("study_kills", rows, {"kills": sum(int(str(row["kills"])) for row in rows), "without_postgresql": why or None})


def _empty(url: str) -> None:
    """The next study is another one under the same name."""
    import optuna

    from batchcal.hpo.storage.backend import open_storage

    optuna.delete_study(study_name="study", storage=open_storage(url))


if __name__ == "__main__":
    main()
