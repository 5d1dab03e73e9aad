"""Two hundred trials in one study: the memory of who leads it, and of its worker, over time; what is left behind; how well each
trial's memory was predicted; how often a shape was calibrated; whether each optimizer step had the sampled batch size.

    python -m tests.benchmarks.study_memory --trials 200
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import psutil

from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import MIB, finish, say
from tests.benchmarks._studies import TRAINED_SAMPLES, command, facts_of, folder_of, in_state, tiny, told, trials_of, wrong_steps

EVERY_S: Final = 1.0
SAMPLES: Final = 400
EPOCHS: Final = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    arguments = parser.parse_args()
    held: dict[str, list[int]] = {"leader": [], "worker": []}
    with (
        folder_of(tiny(trials=arguments.trials, epochs=EPOCHS, samples=SAMPLES)) as folder,
        tempfile.TemporaryDirectory() as temporary,
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": temporary}
        began = time.monotonic()
        with (folder / "out").open("w", encoding="utf-8") as out, (folder / "err").open("w", encoding="utf-8") as err:
            process = subprocess.Popen(command("run", "--json"), cwd=folder, env=environment, stdout=out, stderr=err)
            while process.poll() is None:
                time.sleep(EVERY_S)
                _look(process.pid, held)
        wall_s = time.monotonic() - began
        say((folder / "err").read_text(encoding="utf-8")[-1000:])
        document = told((folder / "out").read_text(encoding="utf-8"))
        left = [path.name for path in Path(temporary).iterdir()]
        size = sum(path.stat().st_size for path in (folder / ".batchcal").rglob("*") if path.is_file())
    trials = trials_of(document)
    rows: list[dict[str, object]] = []
    for name, sizes in held.items():
        parts = [sizes[len(sizes) * place // 4 : len(sizes) * (place + 1) // 4] for place in range(4)]
        rows.append({"process": name, **{f"quarter_{place}_mib": _mib(part) for place, part in enumerate(parts, 1)}})
    errors = sorted(abs(_ratio(one) - 1) for one in in_state(trials, "complete"))
    summary = {
        "exit": process.returncode,
        "wall_s": round(wall_s),
        "counts": document["counts"],
        "calibrations": document["calibrations"],
        "prediction_error_median": round(statistics.median(errors), 4),
        "prediction_error_worst": round(errors[-1], 4),
        "above_prediction_by": round(max(_ratio(one) for one in in_state(trials, "complete")) - 1, 4),
        "wrong_steps": wrong_steps(trials, round(SAMPLES * TRAINED_SAMPLES)),
        "left_behind": left,
        "on_disk_kib": size // 1024,
        "trials_per_minute": round(60 * len(trials) / wall_s, 1),
    }
    finish("study_memory", rows, summary)


def _look(pid: int, held: dict[str, list[int]]) -> None:
    try:
        leader = psutil.Process(pid)
        held["leader"].append(leader.memory_info().rss)
        for child in leader.children():
            if "batchcal.hpo.workers.process" in child.cmdline():
                held["worker"].append(child.memory_info().rss)
    except psutil.Error:
        return


def _ratio(trial: object) -> float:
    assert isinstance(trial, dict)
    facts = facts_of(trial)
    peak, predicted = facts["peak_bytes"], facts["predicted_peak_bytes"]
    assert isinstance(peak, int)
    assert isinstance(predicted, int)
    return peak / predicted


def _mib(sizes: list[int]) -> float | None:
    return round(statistics.median(sizes) / MIB, 1) if sizes else None


if __name__ == "__main__":
    main()
