"""The batch-size finders side by side: Lightning (both modes), Accelerate and batchcal, same model, same data, same limits.

Two regimes: a real memory cgroup, where the kernel kills, and an rlimit, where an allocation fails and a finder that catches
the error lives on. Interleaved. With --verify every answer is then trained with, in the cgroup, five times.

    nox -s bench -- finders --limits 1GiB --rounds 3
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from batchcal.core.units import parse_size
from tests.benchmarks._limits import ROOT, Ended, Regime, python, run_limited
from tests.benchmarks._report import Journal, finish, rounds, say
from tests.benchmarks.oracle import Training

FINDERS: Final = ("lightning power", "lightning binsearch", "accelerate", "batchcal")
REGIMES: Final[dict[str, Regime]] = {"cgroup": "cgroup", "rlimit-data": "rlimit-data", "rlimit-as": "rlimit-as"}
VERIFYING_RUNS: Final = 5


def command_of(finder: str, config: str, ceiling: int, output: Path) -> list[str]:
    if finder == "batchcal":
        # The largest batch under the same allocator, as the others look for.
        options = ["--json", "--force", "--max-batch", str(ceiling), "--output", str(output)]
        options += ["--allocator", "default", "--objective", "memory"]
        return python("-m", "batchcal", "calibrate", config, *options)
    name, _, mode = finder.partition(" ")
    options = ["--ceiling", str(ceiling), *(["--mode", mode] if mode else [])]
    return python("-m", f"tests.benchmarks.finder_{name}", config, *options)


def run(finder: str, config: str, *, ceiling: int, limit_bytes: int, regime: Regime, timeout_s: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="finders-") as folder:
        output = Path(folder) / "calibration.json"
        home = {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_CACHE_HOME": f"{folder}/cache"}
        ended = run_limited(
            command_of(finder, config, ceiling, output),
            limit_bytes=limit_bytes,
            regime=regime,
            timeout_s=timeout_s,
            environment=home,
        )
        if finder == "batchcal":
            answer, ran = _of_calibration(output)
        else:
            answer, ran = _of_finder(ended)
    return {
        "finder": finder,
        "survived": ended.survived,
        "exit": ended.exit_code,
        "oom_kills": ended.oom_kills,
        "timed_out": ended.timed_out,
        "answer": answer,
        "was_run": None if answer is None else answer in ran,
        "sizes_run": ran,
        "wall_s": round(ended.wall_s, 2),
        "last_words": last_words(ended),
    }


def last_words(ended: Ended) -> str:
    """Why it did not survive, in one line."""
    if ended.survived:
        return ""
    if ended.oom_kills:
        return "killed by the kernel"
    if ended.timed_out:
        return "did not end in time"
    return next((line[:200] for line in reversed(ended.stderr.splitlines()) if line.strip()), f"exit {ended.exit_code}")


def _of_finder(ended: Ended) -> tuple[int | None, list[int]]:
    lines = ended.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return None, []
    return _numbers(told if isinstance(told, dict) else {})


def _numbers(told: Mapping[str, object]) -> tuple[int | None, list[int]]:
    answer, ran = told.get("answer"), told.get("ran")
    return answer if isinstance(answer, int) else None, [one for one in ran if isinstance(one, int)] if isinstance(
        ran, list
    ) else []


def _of_calibration(path: Path) -> tuple[int | None, list[int]]:
    from batchcal.calibration.schema import Calibration

    if not path.exists():
        return None, []
    calibration = Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    finding = calibration.finding()
    fitting = {one.batch for one in calibration.measurements if one.mode == "train" and one.outcome.kind == "fits"}
    return None if finding is None else finding.train.batch, sorted(fitting)


def summarised(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row per limit, regime and finder: medians over the rounds."""
    keys = list(dict.fromkeys((row["limit"], row["regime"], row["finder"]) for row in rows))
    found: list[dict[str, object]] = []
    for limit, regime, finder in keys:
        runs = [row for row in rows if (row["limit"], row["regime"], row["finder"]) == (limit, regime, finder)]
        answers = [answer for row in runs if isinstance(answer := row["answer"], int)]
        found.append(
            {
                "limit": limit,
                "regime": regime,
                "finder": finder,
                "survived": f"{sum(row['survived'] is True for row in runs)}/{len(runs)}",
                "oom_kills": sum(kills for row in runs if isinstance(kills := row["oom_kills"], int)),
                "answer": int(statistics.median(answers)) if answers else None,
                "was_run": all(row["was_run"] is True for row in runs) if answers else None,
                "wall_s": round(statistics.median(wall for row in runs if isinstance(wall := row["wall_s"], float)), 2),
                "answer_survives": next((row["answer_survives"] for row in runs if row.get("answer_survives")), None),
                "last_words": next((str(row["last_words"]) for row in runs if row["last_words"]), ""),
            }
        )
    return found


def advantage(rows: list[dict[str, object]]) -> dict[str, object]:
    """Lightning's binsearch against batchcal where both survive: how much wall time, how much smaller an answer."""
    told: dict[str, object] = {}
    for one in (row for row in rows if row["finder"] == "batchcal"):
        where = (one["limit"], one["regime"])
        other = next((r for r in rows if (r["limit"], r["regime"], r["finder"]) == (*where, "lightning binsearch")), None)
        if other is None or not isinstance(other["answer"], int) or not isinstance(one["answer"], int):
            continue
        mine, theirs = one["wall_s"], other["wall_s"]
        if isinstance(mine, float) and isinstance(theirs, float):
            told[f"binsearch_wall_over_ours, {' '.join(map(str, where))}"] = round(theirs / mine, 2)
            told[f"our_answer_over_binsearch, {' '.join(map(str, where))}"] = round(one["answer"] / other["answer"], 3)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/handwriting.toml")
    parser.add_argument("--limits", default="1GiB")
    parser.add_argument("--regimes", default="cgroup,rlimit-data", help=f"of {', '.join(REGIMES)}")
    parser.add_argument("--finders", default=",".join(FINDERS))
    parser.add_argument("--ceiling", type=int, default=8192, help="largest batch that anybody may try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout-s", type=float, default=900.0)
    parser.add_argument("--verify", action="store_true", help="train five times with each answer, in the cgroup")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "finders.jsonl")
    arguments = parser.parse_args()
    finders = arguments.finders.split(",")
    missing = {name for finder in finders if importlib.util.find_spec(name := finder.partition(" ")[0]) is None}
    if missing:  # a program that is not there has not failed
        parser.error(f"not installed: {', '.join(sorted(missing))}; nox -s bench -- finders installs them")
    journal = Journal(arguments.journal)
    rows: list[dict[str, object]] = []
    for text in arguments.limits.split(","):
        limit = parse_size(text, name="limit")
        for regime in arguments.regimes.split(","):
            for finder in rounds(arguments.finders.split(","), arguments.rounds):
                row = run(
                    finder,
                    arguments.config,
                    ceiling=arguments.ceiling,
                    limit_bytes=limit,
                    regime=REGIMES[regime],
                    timeout_s=arguments.timeout_s,
                )
                row = {"limit": text, "regime": regime, "config": arguments.config, "ceiling": arguments.ceiling} | row
                how = "survived" if row["survived"] else f"did not survive: {row['last_words']}"
                say(f"{text} {regime} {finder}: {row['answer']} in {row['wall_s']} s, {how}")
                journal.add(row)
                rows.append(row)
            if arguments.verify:
                _verify(rows, arguments.config, limit, regime)
    summary = summarised(rows)
    finish("finders", summary, advantage(summary))


def _verify(rows: list[dict[str, object]], config: str, limit_bytes: int, regime: str) -> None:
    """Says of each answer how many plain trainings, evaluation included, survive with it in the cgroup."""
    survived: dict[int, str] = {}
    for row in (row for row in rows if row["regime"] == regime):
        answer = row["answer"]
        if not isinstance(answer, int):
            continue
        if answer not in survived:
            trials = [Training(config, limit_bytes).trial(answer) for _ in range(VERIFYING_RUNS)]
            survived[answer] = f"{sum(trial.survived for trial in trials)}/{VERIFYING_RUNS}"
            say(f"  {answer}: {survived[answer]} plain trainings survive")
        row["answer_survives"] = survived[answer]


if __name__ == "__main__":
    main()
