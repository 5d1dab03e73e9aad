"""From a small start to the plan's size: how long until a training is as fast as its calibration says, and does it swing?

Calibrates in a memory cgroup, then trains there with `--start-micro-batch 8` and reads the run's own log. As fast: the median of
a few steps in a row is within 5 % of the calibrated samples/s; beside it the same against what the training itself settles at,
since a machine may be slower in one minute than in the one before.

    python -m tests.benchmarks.growth --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Calibration
from batchcal.core.units import parse_size
from batchcal.plan.make import make_plan
from tests.benchmarks._limits import python, run_limited
from tests.benchmarks._report import finish, say

START: Final = 8
IN_A_ROW: Final = 5
AS_FAST: Final = 0.95
TIMEOUT_S: Final = 900.0


def events(log: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [one for one in found if isinstance(one, dict)]


def number(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return float(value)


def reached_s(steps: list[dict[str, object]], wanted: float) -> float | None:
    """Seconds of training until the median of so many steps in a row is `wanted` samples/s."""
    rates = [number(step, "samples_per_s") for step in steps]
    passed = list(accumulate(number(step, "wall_s") for step in steps))
    for end in range(IN_A_ROW, len(rates) + 1):
        if statistics.median(rates[end - IN_A_ROW : end]) >= wanted:
            return round(passed[end - 1], 1)
    return None


def grown(config: str, limit: int, effective: int, epochs: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        kept, log = Path(folder) / "calibration.json", Path(folder) / "run.jsonl"
        home = {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_CACHE_HOME": f"{folder}/cache"}
        common = (config, "--output", str(kept), "--effective-batch", str(effective))
        calibrated = run_limited(
            python("-m", "batchcal", "calibrate", *common), limit_bytes=limit, environment=home, timeout_s=TIMEOUT_S
        )
        if not kept.exists():
            raise SystemExit(calibrated.stderr[-2000:])
        plan = make_plan(Calibration.model_validate_json(kept.read_text(encoding="utf-8")), effective_batch=effective)
        options = ("--start-micro-batch", str(START), "--epochs", str(epochs), "--no-calibrate", "--log", str(log), "--json")
        ended = run_limited(
            python("-m", "batchcal", "train", *common, *options), limit_bytes=limit, environment=home, timeout_s=TIMEOUT_S
        )
        if ended.exit_code:
            raise SystemExit(ended.stderr[-2000:])
        heard = events(log)
    steps = [one for one in heard if one.get("event") == "step"]
    sizes = [(number(one, "was"), number(one, "now")) for one in heard if one.get("event") == "resized"]
    settled = statistics.median(number(step, "samples_per_s") for step in steps[len(steps) // 2 :])
    promised = plan.predicted_samples_per_s or settled
    at_size = [place for place, step in enumerate(steps) if number(step, "micro_batch") >= plan.micro_batch]
    return {
        "planned": plan.micro_batch,
        "calibrated": round(promised),
        "settled": round(settled),
        "steps": len(steps),
        "at_planned_size_s": round(sum(number(step, "wall_s") for step in steps[: at_size[0]]), 1) if at_size else None,
        "as_calibrated_s": reached_s(steps, AS_FAST * promised),
        "as_settled_s": reached_s(steps, AS_FAST * settled),
        "grew": sum(now > was for was, now in sizes),
        "shrank": sum(now < was for was, now in sizes),
        "oom_kills": calibrated.oom_kills + ended.oom_kills,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/handwriting.toml")
    parser.add_argument("--limit", default="2GiB")
    parser.add_argument("--effective-batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    limit = parse_size(arguments.limit, name="limit")
    for _ in range(arguments.rounds):
        rows.append(grown(arguments.config, limit, arguments.effective_batch, arguments.epochs))
        say(str(rows[-1]))
    finish("growth", rows, {"shrank": sum(int(str(row["shrank"])) for row in rows)})


if __name__ == "__main__":
    main()
