"""A search over architectures in a small container, some of which it cannot hold: nothing is killed, what fits is trained with
exactly the batch size that was sampled, what does not is told and not tried.

PatchTST with AdamW in a memory cgroup; d_model up to 1024 and up to 256 layers are offered, which need tens of gigabytes.

    python -m tests.benchmarks.study_smoke --limit 2GiB --trials 12
"""

from __future__ import annotations

import argparse
from typing import Final

from batchcal.core.units import format_bytes, parse_size
from batchcal.workload.examples.series import Windows
from tests.benchmarks._limits import run_limited
from tests.benchmarks._report import finish, say
from tests.benchmarks._studies import command, facts_of, folder_of, in_state, told, trials_of, wrong_steps

CONFIG: Final = """\
[task]
spec = "batchcal.workload.examples.patchtst:task"
[task.args]
steps = 1500
lookback = 48
horizon = 12
[calibrate]
allocator = "default"
time_limit = "8s"
[train]
epochs = 27
patience = 3
min_delta = 0.001
[hpo]
study = "smoke"
trials = {trials}
metric = "mse"
budget = "{budget}"
seed = {seed}
[hpo.space]
d_model = {{ kind = "categorical", choices = [32, 256, 1024] }}
n_layers = {{ kind = "categorical", choices = [2, 8, 256] }}
dropout = {{ kind = "uniform", low = 0.1, high = 0.3 }}
learning_rate = {{ kind = "log_uniform", low = 1e-3, high = 1e-2 }}
batch_size = {{ kind = "categorical", choices = [64, 100, 2048] }}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default="2GiB")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--budget", default="2B", help="parameters")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    limit = parse_size(arguments.limit)
    with folder_of(CONFIG.format(trials=arguments.trials, budget=arguments.budget, seed=arguments.seed)) as folder:
        ended = run_limited(command("run", "--json"), limit_bytes=limit, cwd=folder, timeout_s=3600)
    say(ended.stderr)
    document = told(ended.stdout)
    trials = trials_of(document)
    samples = len(Windows(None, 1500, lookback=48, horizon=12, part="train", seed=0))
    rows: list[dict[str, object]] = []
    for one in trials:
        facts, parameters = facts_of(one), one["parameters"]
        assert isinstance(parameters, dict)
        rows.append(
            {
                "trial": one["number"],
                "state": one["state"],
                **{name: parameters[name] for name in ("d_model", "n_layers", "batch_size")},
                "dropout": round(float(parameters["dropout"]), 3),
                "micro": f"{facts.get('micro_batch')}x{facts.get('accumulation_steps')}" if "micro_batch" in facts else None,
                "predicted": _size(facts.get("predicted_peak_bytes")),
                "peak": _size(facts.get("peak_bytes")),
                "epochs": one["epochs"],
                "stopped_early": facts.get("stop_reason"),
                "wall_s": one["wall_s"],
            }
        )
    summary = {
        "exit": ended.exit_code,
        "oom_kills": ended.oom_kills,
        "limit": format_bytes(limit),
        "group_peak": format_bytes(ended.group_peak_bytes),
        "wall_s": round(ended.wall_s),
        "counts": document["counts"],
        "wrong_steps": wrong_steps(trials, samples),
        "stopped_early": sum(bool(facts_of(one).get("stop_reason")) for one in in_state(trials, "complete")),
        "prediction_error": document["prediction_error"],
    }
    finish("study_smoke", rows, summary)


def _size(value: object) -> str | None:
    return format_bytes(value) if isinstance(value, int) else None


if __name__ == "__main__":
    main()
