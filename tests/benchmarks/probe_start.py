"""How long until a probe's child can use torch: forked from the zygote against a new interpreter, interleaved.

python -m tests.benchmarks.probe_start --rounds 30
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack, closing

from batchcal.guard.launch import FunctionJob, Launcher, SpawnLauncher, ZygoteLauncher
from batchcal.guard.run import ChildLimits, run
from batchcal.machine.allocator import resolve
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.children.launchers import PRELOAD
from tests.benchmarks._jobs import ready
from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import finish, paired_ratio, rounds, say

REACH = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--allocator", default="default")
    arguments = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = FunctionJob(ready, {}, str(ROOT), environment)
    policy = resolve(arguments.allocator)
    until_ready: dict[str, list[float]] = {"zygote": [], "spawn": []}
    whole: dict[str, list[float]] = {"zygote": [], "spawn": []}
    with ExitStack() as stack:
        meter = stack.enter_context(closing(memory_meter()))
        began = time.monotonic()
        launchers: dict[str, Launcher] = {"zygote": stack.enter_context(closing(ZygoteLauncher(policy, environment, PRELOAD)))}
        zygote_s = time.monotonic() - began
        launchers["spawn"] = stack.enter_context(closing(SpawnLauncher(policy, environment)))
        for name in rounds(list(launchers), arguments.rounds + 1):
            began = time.monotonic()
            ending = run(job, launchers[name], meter, ChildLimits())
            ended = time.monotonic()
            at = ending.returned.get("at") if isinstance(ending.returned, dict) else None
            if not isinstance(at, float):
                raise SystemExit(f"{name} gave no answer: {ending}")
            until_ready[name].append(at - began)
            whole[name].append(ended - began)
            say(f"{name}: ready after {(at - began) * 1000:.1f} ms, gone after {(ended - began) * 1000:.1f} ms")
    rows = [
        {
            "launcher": name,
            # The first round fills the page cache.
            "ready_ms": round(statistics.median(times[1:]) * 1000, 1),
            "ready_p95_ms": round(statistics.quantiles(times[1:], n=20)[-1] * 1000, 1),
            "start_to_end_ms": round(statistics.median(whole[name][1:]) * 1000, 1),
        }
        for name, times in until_ready.items()
    ]
    ratio = paired_ratio(until_ready["spawn"][1:], until_ready["zygote"][1:])
    ratio_whole = paired_ratio(whole["spawn"][1:], whole["zygote"][1:])
    summary = {
        "spawn_over_zygote": round(ratio, 1),
        "spawn_over_zygote_start_to_end": round(ratio_whole, 1),
        "zygote_itself_s": round(zygote_s, 2),
        "met": ratio >= REACH,
    }
    finish("probe_start", rows, summary)


if __name__ == "__main__":
    main()
