"""What a start costs: `batchcal --help` against the `--help` of an empty two-command Typer app, and the fast verbs likewise.

Interleaved; the number that counts is the median of the ratios within a round. Says too whether any of them loads torch.

    python -m tests.benchmarks.cli_start --rounds 30
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import finish, paired_ratio, rounds, say

EMPTY_APP: Final = """\
import typer

app = typer.Typer()


@app.command()
def one() -> None:
    "Does one thing."


@app.command()
def two() -> None:
    "Does another."


app()
"""
# What pip writes for [project.scripts].
ENTRY: Final = """\
import sys
from batchcal.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
HEAVY: Final = ("torch", "numpy", "optuna")
REACH: Final = {"help": 1.2, "plan": 2.5, "show": 2.5, "calibrate, fresh": 2.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--config", default="configs/handwriting.toml")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        invocation = Path(folder)
        shutil.copytree(ROOT / "configs", invocation / "configs")
        (invocation / "empty.py").write_text(EMPTY_APP)
        (invocation / "entry.py").write_text(ENTRY)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BATCHCAL_")},
            "HOME": folder,
            "XDG_CONFIG_HOME": f"{folder}/config",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "80",
        }
        kept = str(invocation / "calibration.json")
        calibrated = ["calibrate", arguments.config, "--max-batch", "8", "--output", kept]
        commands = {
            "typer": ["empty.py", "--help"],
            "help": ["entry.py", "--help"],
            "plan": ["entry.py", "plan", "--effective-batch", "64", "--calibration", kept],
            "show": ["entry.py", "show", kept],
            "calibrate, fresh": ["entry.py", *calibrated],
        }

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                [sys.executable, *command], cwd=invocation, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                sys.exit(f"exit {done.returncode} of {' '.join(command)}\n{done.stdout}{done.stderr}")
            return done

        say("calibrating once")
        run("entry.py", *calibrated)
        loads = {name: _heavy(run("-X", "importtime", *command).stderr) for name, command in commands.items()}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for name in rounds(list(commands), arguments.rounds):
            began = time.perf_counter()
            run(*commands[name])
            seconds[name].append(time.perf_counter() - began)
    ratios = {name: round(paired_ratio(times, seconds["typer"]), 3) for name, times in seconds.items()}
    rows = [
        {
            "command": name,
            "median_ms": round(statistics.median(times) * 1000, 1),
            "ratio": ratios[name],
            "reach": REACH.get(name),
            "loads": loads[name] or None,
        }
        for name, times in seconds.items()
    ]
    met = all(ratios[name] <= reach for name, reach in REACH.items())
    finish("cli_start", rows, {"rounds": arguments.rounds, "met": met, "none_loads_torch": not any(loads.values())})


def _heavy(import_times: str) -> list[str]:
    loaded = set(re.findall(r"\|\s+([\w.]+)$", import_times, re.MULTILINE))
    return [name for name in HEAVY if name in loaded]


if __name__ == "__main__":
    main()
