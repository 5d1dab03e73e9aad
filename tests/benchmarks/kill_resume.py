"""A training that is killed again and again, and resumed: does it end where one ends that nobody touched?

Each of the kills is a SIGKILL at a random moment: while Python starts, while the checkpoint is read, in a step, in an evaluation,
while a checkpoint is written. Dropout, Adam and a schedule of the learning rate make every generator and every counter matter.

    python -m tests.benchmarks.kill_resume --kills 50
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import torch

from batchcal.core.progress import Named
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.reference import TaskReference
from tests.benchmarks._limits import ROOT, python
from tests.benchmarks._report import finish, say
from tests.support.plans import a_plan

STEPS: Final = 800
"""Of the series: some 490 windows to train with."""
EPOCHS: Final = 6
WRITES_EVERY_S: Final = 0.4
TIMEOUT_S: Final = 300.0
RECOVERED: Final[Counter[str]] = Counter()
"""Recoveries and changes of size, by name: a batch that was cut has the same gradients but for rounding."""


class Told:
    """Every event by its name and the step that it came after."""

    def event(self, event: Named, /) -> None:
        print(json.dumps({"event": event.event_name, "step": event.fields().get("global_step")}), flush=True)


def inside(checkpoint: Path, keep: Path) -> None:
    """The training; goes on where `checkpoint` is there."""
    torch.manual_seed(0)
    reference = TaskReference(
        spec="batchcal.workload.examples.patchtst:task",
        directory=str(ROOT),
        arguments={"steps": STEPS, "lookback": 48, "dropout": 0.2, "n_layers": 2},
    )
    print(json.dumps({"event": "loading"}), flush=True)
    task = load_task(reference, device="cpu")
    options = TrainOptions(epochs=EPOCHS, schedule="cosine", warmup=0.1, max_norm=1.0, checkpoint_every_s=WRITES_EVERY_S)
    train(task, a_plan(16, 16, intra_op_threads=2), options, checkpoint=checkpoint, resume=True, progress=Told())
    torch.save(task.model.state_dict(), keep)


def started(checkpoint: Path, keep: Path) -> subprocess.Popen[str]:
    command = python("-m", "tests.benchmarks.kill_resume", "--inside", str(checkpoint), "--keep", str(keep))
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def whole(checkpoint: Path, keep: Path) -> float:
    """Seconds that an undisturbed training takes; `keep` has its parameters."""
    began = time.monotonic()
    process = started(checkpoint, keep)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    RECOVERED.update(name for name in _events(out) if name in ("recovered", "resized"))
    return time.monotonic() - began


def _events(out: str) -> list[str]:
    return [json.loads(line)["event"] for line in out.splitlines() if line.startswith("{") and line.endswith("}")]


def killed(checkpoint: Path, keep: Path, after_s: float) -> tuple[str, bool]:
    """The last event before the kill; whether it had ended before."""
    process = started(checkpoint, keep)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    told = _events(out)
    RECOVERED.update(name for name in told if name in ("recovered", "resized"))
    return told[-1] if told else "starting", process.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", type=Path)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments.inside, arguments.keep)
        return
    generator = random.Random(arguments.seed)
    rows: list[dict[str, object]] = []
    moments: Counter[str] = Counter()
    done = trainings = equal = 0
    with tempfile.TemporaryDirectory() as folder:
        untouched = Path(folder) / "untouched.pt"
        wall_s = whole(Path(folder) / "untouched-run.pt", untouched)
        expected = torch.load(untouched)
        say(f"untouched: {wall_s:.1f} s")
        while done < arguments.kills:
            trainings += 1
            checkpoint, keep = Path(folder) / f"run-{trainings}.pt", Path(folder) / f"kept-{trainings}.pt"
            kills = 0
            ended = False
            while done < arguments.kills and not ended:
                after, ended = killed(checkpoint, keep, generator.uniform(0.0, wall_s))
                if not ended:
                    done, kills = done + 1, kills + 1
                    moments[after] += 1
                    say(f"kill {done} after {after!r}")
            if not ended:
                whole(checkpoint, keep)
            found = torch.load(keep)
            same = all(torch.equal(found[name], expected[name]) for name in expected)
            apart = max(float((found[name] - expected[name]).abs().max()) for name in expected)
            equal += same
            left = [path.name for path in Path(folder).glob(f".run-{trainings}*")]
            rows.append(
                {"training": trainings, "kills": kills, "equal": same, "apart": f"{apart:.1e}", "left": ",".join(left) or None}
            )
            say(str(rows[-1]))
    finish(
        "kill_resume",
        rows,
        {"kills": done, "equal": f"{equal} of {trainings}", "after": dict(moments), "beside": dict(RECOVERED)},
    )


if __name__ == "__main__":
    main()
