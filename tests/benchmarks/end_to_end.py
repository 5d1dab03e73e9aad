"""What a user gains: a plain PyTorch training with all its defaults against `batchcal train`, in the same container.

Both train the same task with the same effective batch over the same number of samples, evaluation included, in memory cgroups of
their own and in turn. The plain one is tests/benchmarks/plain_epochs.py: DataLoader's, torch's and glibc's defaults.

    python -m tests.benchmarks.end_to_end --config handwriting --effective-batch 512 --limit 7.6GiB --samples 60000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Calibration
from batchcal.core.units import parse_size
from tests.benchmarks._limits import Ended, python, run_limited
from tests.benchmarks._report import MIB, finish, say

TIMEOUT_S: Final = 1800.0


def plain(config: str, effective: int, samples: int, limit: int) -> dict[str, object]:
    command = python("-m", "tests.benchmarks.plain_epochs", config, "--batch", str(effective), "--samples", str(samples))
    return row("plain PyTorch", run_limited(command, limit_bytes=limit, timeout_s=TIMEOUT_S), limit)


def planned(config: str, effective: int, epochs: int, limit: int, kept: Path) -> dict[str, object]:
    command = python("-m", "batchcal", "train", config, "--output", str(kept), "--effective-batch", str(effective))
    ended = run_limited(
        [*command, "--epochs", str(epochs), "--no-calibrate", "--json"],
        limit_bytes=limit,
        timeout_s=TIMEOUT_S,
        environment={"HOME": str(kept.parent)},
    )
    return row("batchcal train", ended, limit)


def row(who: str, ended: Ended, limit: int) -> dict[str, object]:
    if ended.exit_code != 0:
        say(ended.stderr[-2000:])
        return {"who": who, "exit": ended.exit_code, "oom_kills": ended.oom_kills}
    told = json.loads(ended.stdout[ended.stdout.index("{") :])
    if "epochs" in told:
        samples = sum(epoch["samples"] for epoch in told["epochs"])
        seconds = told["wall_s"]
    else:
        samples, seconds = told["samples"], told["wall_s"]
    return {
        "who": who,
        "exit": 0,
        "oom_kills": ended.oom_kills,
        "samples": samples,
        "training_s": round(seconds, 1),
        "wall_s": round(ended.wall_s, 1),
        "samples_per_s": round(samples / seconds, 1),
        "minutes_per_60000": round(60_000 / (samples / seconds) / 60, 2),
        "peak_mib": round(ended.group_peak_bytes / MIB),
        "of_limit": round(ended.group_peak_bytes / limit, 3),
    }


def rates_of(who: str, rows: list[dict[str, object]]) -> list[float]:
    found = (one.get("samples_per_s") for one in rows if one["who"] == who)
    return [rate for rate in found if isinstance(rate, float)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="handwriting", help="a name in configs/, without .toml")
    parser.add_argument("--effective-batch", type=int, default=512)
    parser.add_argument("--limit", default="7.6GiB")
    parser.add_argument("--samples", type=int, default=60_000, help="at least so many, in whole epochs")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("options", nargs="*", help="for calibrate, behind `--`")
    arguments = parser.parse_args()
    config, limit = f"configs/{arguments.config}.toml", parse_size(arguments.limit, name="limit")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as folder:
        kept = Path(folder) / "calibration.json"
        asked = ["--effective-batch", str(arguments.effective_batch), "--output", str(kept), *arguments.options]
        made = run_limited(python("-m", "batchcal", "calibrate", config, *asked), limit_bytes=limit, environment={"HOME": folder})
        if not kept.exists():
            raise SystemExit(made.stderr[-2000:])
        calibration = Calibration.model_validate_json(kept.read_text(encoding="utf-8"))
        facts = calibration.facts
        each = (facts.train_samples if facts is not None else None) or arguments.samples
        epochs = max(1, -(-arguments.samples // each))
        say(f"calibrated in {made.wall_s:.1f} s, {made.oom_kills} kernel kills; {epochs} epochs of {each} samples")
        for _ in range(arguments.rounds):
            rows.append(plain(config, arguments.effective_batch, epochs * each, limit))
            say(str(rows[-1]))
            rows.append(planned(config, arguments.effective_batch, epochs, limit, kept))
            say(str(rows[-1]))
    rates = {who: rates_of(who, rows) for who in ("plain PyTorch", "batchcal train")}
    pairs = list(zip(rates["batchcal train"], rates["plain PyTorch"], strict=False))
    told = calibration.attribution
    finish(
        "end_to_end",
        rows,
        {
            "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 3) if pairs else None,
            "calibrate_s": round(made.wall_s, 1),
            "kernel_oom_kills_calibrating": made.oom_kills,
            "said_gain": None if told is None or told.gain is None else round(told.gain, 2),
        },
    )


if __name__ == "__main__":
    main()
