"""Strange but legal trainings (tests/inputs): what batchcal makes of each, beside what is right.

    python -m tests.benchmarks.strange_inputs                    all of them, a table
    python -m tests.benchmarks.strange_inputs even_batches       some
    python -m tests.benchmarks.strange_inputs --folder DIR       files of these names in another folder
    python -m tests.benchmarks.strange_inputs --out FILE         one JSON object per input; those that are there are not run again

Each command runs in a memory cgroup of 3 GiB with `--memory-limit 1500MiB`. Needs root. Exit code: how many are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcal.core.units import GIB, MIB
from tests.benchmarks._limits import ROOT, Ended, run_limited
from tests.support.cgroups import memory_cgroup

INPUTS: Final = ROOT / "tests" / "inputs"
LIMIT: Final = 1500 * MIB
TIME_LIMIT_S: Final = 20.0
GRACE: Final = (1.25, 3.0)
"""A command ends within its time limit times the first, plus the second, in seconds."""


class Wrong(Exception):
    """What is not as it should be."""


@dataclass(frozen=True)
class Bench:
    """One input in a folder of its own."""

    file: Path
    home: Path

    def batchcal(
        self, verb: str, *flags: str, factory: str = "task", env: Mapping[str, str] | None = None, group_bytes: int = 3 * GIB
    ) -> Ended:
        target = [f"{self.file}:{factory}"] if verb in ("calibrate", "train") else []
        command = [sys.executable, "-m", "batchcal", verb, *target, *flags]
        own = {"BATCHCAL_CALIBRATION": str(self.home / f"{factory}.json"), **(env or {})}
        return run_limited(command, limit_bytes=group_bytes, environment=own, cwd=self.home, timeout_s=300)

    def calibrate(self, *flags: str, factory: str = "task", seconds: float = TIME_LIMIT_S, group_bytes: int = 3 * GIB) -> Ended:
        ended = self.batchcal(
            "calibrate",
            *("--memory-limit", "1500MiB", "--time-limit", f"{seconds:g}s", "--force", *flags),
            factory=factory,
            group_bytes=group_bytes,
        )
        demand(ended.wall_s <= GRACE[0] * seconds + GRACE[1], f"{ended.wall_s:.0f} s of {seconds:.0f} s")
        demand(ended.oom_kills == 0, f"{ended.oom_kills} kernel kills")
        return ended

    def train(self, *flags: str, factory: str = "task", env: Mapping[str, str] | None = None) -> Ended:
        limit = ("--memory-limit", "1500MiB", "--no-calibrate", "--epochs", "1", *flags)
        return self.batchcal("train", *limit, factory=factory, env=env)

    def plan(self, *flags: str, factory: str = "task") -> dict[str, object]:
        ended = self.batchcal("plan", "--json", *flags, factory=factory)
        succeeds(ended, "plan")
        found: object = json.loads(ended.stdout)
        assert isinstance(found, dict)
        return found

    def kept(self, factory: str = "task") -> dict[str, object]:
        """The calibration as it is in its file."""
        found: object = json.loads((self.home / f"{factory}.json").read_text(encoding="utf-8"))
        assert isinstance(found, dict)
        return found

    def capacity(self, factory: str = "task") -> int:
        findings = self.kept(factory)["findings"]
        assert isinstance(findings, list)
        demand(bool(findings), "nothing was verified")
        return int(findings[0]["train"]["batch"])

    def run_itself(self) -> Ended:
        return run_limited([sys.executable, str(self.file)], limit_bytes=3 * GIB, cwd=self.home, timeout_s=200)

    def plain_epoch(self, plan: Mapping[str, object], limit_bytes: int) -> Ended:
        """One epoch of a loop that knows nothing of batchcal, at the plan's micro-batch and workers."""
        batch, workers = str(plan["micro_batch"]), str(plan["num_workers"])
        command = [sys.executable, "-c", PLAIN_EPOCH, str(self.file), batch, workers]
        environment = {str(name): str(value) for name, value in _allocator_variables(plan).items()}
        return run_limited(command, limit_bytes=limit_bytes, environment=environment, cwd=self.home, timeout_s=300)


PLAIN_EPOCH: Final = """
import importlib.util, sys, torch
path, batch, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
spec = importlib.util.spec_from_file_location("plain", path)
module = importlib.util.module_from_spec(spec)
sys.modules["plain"] = module
spec.loader.exec_module(module)
task = module.task()
torch.set_num_threads(2)
loading = {"num_workers": workers, "collate_fn": task.collate_fn, "shuffle": True}
loader = torch.utils.data.DataLoader(task.train_data, batch_size=batch, **loading)
for samples in loader:
    task.optimizer.zero_grad()
    task.loss(task.model, samples).backward()
    task.optimizer.step()
"""


def _allocator_variables(plan: Mapping[str, object]) -> Mapping[str, str]:
    from batchcal.machine.allocator import resolve

    return resolve(str(plan["allocator"])).environment(os.environ)


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def succeeds(ended: Ended, what: str) -> Ended:
    demand(ended.exit_code == 0, f"{what} exits {ended.exit_code}: {_last(ended.stderr)}")
    return ended


def refuses(ended: Ended, code: int, *texts: str) -> None:
    demand(ended.exit_code == code, f"exit {ended.exit_code} instead of {code}: {_last(ended.stderr)}")
    shown = " ".join((ended.stdout + ended.stderr).split())
    missing = [text for text in texts if text not in shown]
    demand(not missing, f"does not name {', '.join(missing)}: {_last(ended.stderr)}")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(("error:", "note:", "try:"))]
    return " | ".join(lines or text.strip().splitlines()[-2:])[:400]


def in_batch_negatives(bench: Bench) -> str:
    ended = bench.calibrate("--max-batch", "32", "--effective-batch", "128")
    refuses(ended, 2, "--accept-inexact", "--effective-batch 32", "other samples")
    succeeds(bench.calibrate("--max-batch", "32", "--effective-batch", "128", "--accept-inexact"), "with consent")
    plan = bench.plan("--effective-batch", "128")
    demand(plan["inexact"] == ["loss"], f"the plan says inexact: {plan['inexact']}")
    return "refused by default, marked with consent"


def token_mean(bench: Bench) -> str:
    refuses(bench.calibrate("--max-batch", "32", "--effective-batch", "128"), 2, "weight_of", "--accept-inexact")
    if "def weighted" in bench.file.read_text(encoding="utf-8"):
        flags = ("--max-batch", "32", "--effective-batch", "128")
        succeeds(bench.calibrate(*flags, factory="weighted"), "with weight_of")
        demand(bench.plan("--effective-batch", "128", factory="weighted")["inexact"] == [], "marked although weighed")
        return "refused, names weight_of; exact with it"
    return "refused, names weight_of"


def none_samples(bench: Bench) -> str:
    succeeds(bench.calibrate("--max-batch", "32", "--effective-batch", "64"), "calibrate")
    demand(bench.plan("--effective-batch", "64")["inexact"] == [], "rows are not weighed")
    succeeds(bench.train("--effective-batch", "64"), "train")
    mostly = bench.calibrate("--max-batch", "32", "--effective-batch", "64", factory="mostly")
    demand(mostly.exit_code in (0, 5, 6), f"mostly None: exit {mostly.exit_code}")
    if mostly.exit_code == 0:
        succeeds(bench.train("--effective-batch", "64", factory="mostly"), "train mostly None")
        return "weighed by rows; mostly None trains"
    return f"weighed by rows; mostly None: exit {mostly.exit_code}, {_last(mostly.stderr)}"


def batchnorm_last_one(bench: Bench) -> str:
    ended = succeeds(bench.calibrate("--effective-batch", "64"), "calibrate")
    demand("--drop-last" in ended.stdout + ended.stderr, "calibrate does not name --drop-last")
    refuses(bench.train("--effective-batch", "64"), 2, "--drop-last")
    succeeds(bench.train("--effective-batch", "64", "--drop-last"), "train --drop-last")
    return "foreseen, names --drop-last, trains with it"


def even_batches(bench: Bench) -> str:
    ended = succeeds(bench.calibrate("--max-batch", "501"), "calibrate")
    capacity = bench.capacity()
    demand(capacity % 2 == 0 and capacity >= 64, f"the capacity is {capacity}")
    demand("even" in ended.stdout + ended.stderr, "the rule is not named")
    succeeds(bench.calibrate("--multiple-of", "2", "--max-batch", "64"), "--multiple-of 2")
    succeeds(bench.train("--effective-batch", "64"), "train")
    return f"{capacity}, the rule is named"


def stateful(bench: Bench) -> str:
    succeeds(bench.calibrate("--max-batch", "256"), "calibrate")
    capacity = bench.capacity()
    demand(capacity >= 64, f"the capacity is {capacity}")
    return f"{capacity}"


def fixed_batch(bench: Bench) -> str:
    size = "24" if "24" in bench.file.read_text(encoding="utf-8") else "32"
    ended = bench.calibrate()
    if ended.exit_code == 0:
        demand(bench.capacity() == int(size), f"the capacity is {bench.capacity()}")
    else:
        refuses(ended, 5, "--multiple-of", "--max-batch")
    succeeds(bench.calibrate("--multiple-of", size, "--max-batch", size), "with the flags")
    succeeds(bench.train("--effective-batch", size), "train")
    return f"exit {ended.exit_code} by default; works with the flags"


def nothing_labelled(bench: Bench) -> str:
    for factory in ("task", "nan", "weighted"):
        succeeds(bench.calibrate("--max-batch", "64", "--effective-batch", "64", factory=factory), f"calibrate {factory}")
        succeeds(bench.train("--effective-batch", "64", factory=factory), f"train {factory}")
    return "all three train"


def list_of_images(bench: Bench) -> str:
    ended = bench.run_itself()
    demand(ended.exit_code == 0, f"divided along the channels: {ended.stdout}")
    return "divided by images"


def open_file(bench: Bench) -> str:
    log = bench.home / "wrong.log"
    succeeds(bench.calibrate("--effective-batch", "64"), "calibrate")
    plan = bench.plan("--effective-batch", "64")
    succeeds(bench.train("--effective-batch", "64", env={"WRONG_ROWS": str(log), "REPORT17_LOG": str(log)}), "train")
    wrong = log.read_text(encoding="ascii").count("\n") if log.exists() else 0
    demand(wrong == 0, f"{wrong} wrong records with {plan['num_workers']} workers")
    return f"{plan['num_workers']} workers ({plan['multiprocessing_context'] or 'default'}), 0 wrong records"


def pool_in_dataset(bench: Bench) -> str:
    succeeds(bench.calibrate("--effective-batch", "32", "--max-batch", "32"), "calibrate")
    demand(bench.plan("--effective-batch", "32")["num_workers"] == 0, "workers although they may have no children")
    pipeline = bench.batchcal("calibrate", "--pipeline-only", "--memory-limit", "1500MiB", "--time-limit", "20s")
    demand(pipeline.wall_s <= GRACE[0] * TIME_LIMIT_S + GRACE[1], f"--pipeline-only takes {pipeline.wall_s:.0f} s")
    pinned = bench.calibrate("--workers", "2", "--max-batch", "32")
    demand(pinned.exit_code == 5, f"--workers 2 exits {pinned.exit_code}: {_last(pinned.stderr)}")
    return f"no workers; pinned: {_last(pinned.stderr)[:80]}"


def argparse_at_import(bench: Bench) -> str:
    succeeds(bench.calibrate("--effective-batch", "256"), "calibrate")
    succeeds(bench.train("--effective-batch", "256"), "train")
    return "as under python FILE"


def chdir_at_import(bench: Bench) -> str:
    succeeds(bench.calibrate("--effective-batch", "64"), "calibrate")
    succeeds(bench.train("--effective-batch", "64", "--checkpoint", "run.pt", "--log", "run.jsonl"), "train")
    missing = [name for name in ("run.pt", "run.jsonl") if not (bench.home / name).exists()]
    demand(not missing, f"{missing} elsewhere")
    return "files are where the command was started"


def opaque_samples(bench: Bench) -> str:
    succeeds(bench.calibrate(), "calibrate")
    plan = bench.plan("--effective-batch", str(bench.capacity()))
    plain = bench.plain_epoch(plan, LIMIT)
    demand(plain.survived, f"a plain epoch at {plan['micro_batch']}: exit {plain.exit_code}, {plain.oom_kills} kernel kills")
    return f"a plain epoch at {plan['micro_batch']} peaks at {plain.group_peak_bytes / MIB:.0f} MiB"


def float16_skips(bench: Bench) -> str:
    ended = bench.run_itself()
    lines = "; ".join(ended.stdout.strip().splitlines())
    demand(ended.exit_code == 0, lines or _last(ended.stderr))
    return lines


def parameters_of_the_loss(bench: Bench) -> str:
    succeeds(bench.calibrate("--effective-batch", "64", "--max-batch", "64"), "calibrate")
    at_once = bench.train("--effective-batch", "64", "--epochs", "2", "--checkpoint", "once.pt")
    succeeds(at_once, "two epochs")
    succeeds(bench.train("--effective-batch", "64", "--epochs", "1", "--checkpoint", "twice.pt"), "one epoch")
    succeeds(bench.train("--effective-batch", "64", "--epochs", "2", "--checkpoint", "twice.pt", "--resume"), "resumed")
    equal = subprocess.run([sys.executable, "-c", SAME_CHECKPOINTS, "once.pt", "twice.pt"], cwd=bench.home, check=False)
    demand(equal.returncode == 0, "the resumed run ends elsewhere")
    return "a resumed run ends at the same values"


SAME_CHECKPOINTS: Final = """
import sys, torch
def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from tensors(item)
one, other = ([*tensors({k: v for k, v in torch.load(p).items() if "generator" not in k})] for p in sys.argv[1:])
sys.exit(len(one) != len(other) or not all(map(torch.equal, one, other)))
"""


def endless_stream(bench: Bench) -> str:
    samples = 1500 if "1500" in bench.file.read_text(encoding="utf-8") else 2000
    succeeds(bench.calibrate("--effective-batch", "100"), "calibrate")
    ended = succeeds(bench.train("--effective-batch", "100", "--json"), "train")
    trained = json.loads(ended.stdout)["epochs"][0]["samples"]
    demand(trained == samples, f"an epoch has {trained} samples")
    steps = succeeds(bench.train("--effective-batch", "100", "--max-steps", "4", "--json"), "--max-steps")
    demand(json.loads(steps.stdout)["epochs"][0]["samples"] == 400, "--max-steps 4 is not 400 samples")
    return f"{trained} samples an epoch; --max-steps works"


def copied_on_read(bench: Bench) -> str:
    succeeds(bench.calibrate("--workers", "2"), "calibrate --workers 2")
    plan = bench.plan("--effective-batch", str(bench.capacity()))
    plain = bench.plain_epoch(plan, LIMIT)
    workers = plan["num_workers"]
    demand(plain.survived, f"{plan['micro_batch']} with {workers} workers: {plain.oom_kills} kernel kills")
    return f"a plain epoch at {plan['micro_batch']} with {workers} workers peaks at {plain.group_peak_bytes / MIB:.0f} MiB"


def whole_batches(bench: Bench) -> str:
    succeeds(bench.calibrate("--effective-batch", "512"), "calibrate")
    succeeds(bench.train("--effective-batch", "512"), "train")
    return "fetched as torch's own fetcher does"


def not_even_one(bench: Bench) -> str:
    ended = bench.calibrate(group_bytes=8 * GIB)
    refuses(ended, 4, "nothing fits")
    over = ended.group_peak_bytes - LIMIT
    demand(over < 150 * MIB, f"{ended.group_peak_bytes / MIB:.0f} MiB were held of 1500")
    return f"exit 4 after {ended.wall_s:.0f} s, peak {ended.group_peak_bytes / MIB:.0f} MiB"


def preempted(bench: Bench) -> str:
    flags = ("--workers", "2", "--max-batch", "32", "--effective-batch", "64")
    succeeds(bench.calibrate(*flags), "calibrate")
    command = [sys.executable, "-m", "batchcal", "train", f"{bench.file}:task", *flags, "--memory-limit", "1500MiB"]
    command += ["--no-calibrate", "--epochs", "5", "--checkpoint", "run.pt"]
    before = _left_in_temporary_folder()
    for how in ("process", "group", "group"):
        (bench.home / "run.pt").unlink(missing_ok=True)
        code, text = _stopped_while_it_trains(command, bench, to_group=how == "group")
        demand(code == 128 + signal.SIGTERM, f"SIGTERM to the {how}: exit {code}, {text}")
        demand((bench.home / "run.pt").exists(), f"SIGTERM to the {how}: no checkpoint")
    time.sleep(0.5)
    left = _left_in_temporary_folder() - before
    demand(not left, f"left behind: {sorted(left)}")
    return "exit 143 and a checkpoint, three times; nothing left behind"


def _stopped_while_it_trains(command: Sequence[str], bench: Bench, *, to_group: bool) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BATCHCAL_CALIBRATION": str(bench.home / "task.json")}
    log = bench.home / ".batchcal" / "run.jsonl"
    with memory_cgroup(3 * GIB) as group, (bench.home / "out").open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(
            group.command([*command, "--log", str(bench.home / "steps.jsonl")]),
            stdout=out,
            stderr=out,
            env=environment,
            cwd=bench.home,
            start_new_session=True,
        )
        log = bench.home / "steps.jsonl"
        log.unlink(missing_ok=True)
        ends = time.monotonic() + 60
        while time.monotonic() < ends and process.poll() is None:
            if log.exists() and '"step"' in log.read_text(encoding="utf-8"):
                break
            time.sleep(0.2)
        time.sleep(1.0)
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
        code = process.wait(timeout=60)
        out.seek(0)
        return code, _last(out.read())


def _left_in_temporary_folder() -> set[str]:
    names = (*Path(tempfile.gettempdir()).glob("pymp-*"), *Path("/dev/shm").glob("*"))
    return {str(path) for path in names}


JUDGES: Final[dict[str, Callable[[Bench], str]]] = {
    judge.__name__: judge
    for judge in (
        *(in_batch_negatives, token_mean, none_samples, batchnorm_last_one, even_batches, stateful, fixed_batch),
        *(nothing_labelled, list_of_images, open_file, pool_in_dataset, argparse_at_import, chdir_at_import, opaque_samples),
        *(float16_skips, parameters_of_the_loss, endless_stream, copied_on_read, whole_batches, not_even_one, preempted),
    )
}


def judged(name: str, folder: Path) -> dict[str, object]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strange-") as home:
        try:
            result, right = JUDGES[name](Bench(folder / f"{name}.py", Path(home))), True
        except Wrong as error:
            result, right = str(error), False
    return {"input": name, "right": right, "result": result, "wall_s": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(JUDGES)}")
    parser.add_argument("--folder", type=Path, default=INPUTS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    there = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out and arguments.out.exists() else []
    done = {row["input"]: row for row in map(json.loads, there)}
    wrong = 0
    for name in arguments.names or JUDGES:
        row = done.get(name) or judged(name, arguments.folder.resolve())
        if arguments.out and name not in done:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        wrong += not row["right"]
        print(f"{'right' if row['right'] else 'WRONG':6}{name:24}{row['wall_s']:>6} s  {row['result']}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
