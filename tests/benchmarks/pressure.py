"""A training in a container that becomes smaller: its limit is lowered between two steps, or a neighbour grows beside it.

The same training is run undisturbed first. It must end, at the same parameters, without a kill, and lose no more than two step
times for each recovery. In float64, with SGD: a rounding error then stays one. In float32 the same samples in parts of another
size are 2e-2 apart after twelve steps, with nothing gone wrong.

    python -m tests.benchmarks.pressure --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Subset

from batchcal.core.units import MIB
from batchcal.train.loop import train
from batchcal.train.memory.predictor import straight_line
from batchcal.train.options import TrainOptions
from batchcal.values.training_events import StepEnded, TrainingEvent
from batchcal.workload.data.sample_size import nest_bytes
from batchcal.workload.spec.load import load_task
from tests.benchmarks._limits import ROOT, python
from tests.benchmarks._reference import reference_of
from tests.benchmarks._report import finish, say
from tests.support.cgroups import MemoryCgroup, memory_cgroup
from tests.support.plans import a_plan

MICRO: Final = 96
GROUP: Final = (MICRO, MICRO)
STEPS: Final = 40
LOWERED_AFTER: Final = 2
NEIGHBOUR: Final = """
import sys, time
held = []
for _ in range(300):
    held.append(bytearray(1 << 20))
    time.sleep(0.1)
time.sleep(3600)
"""


class Told:
    """Every event as a line of JSON on stdout. After the second step the limit of `group` becomes `lower_to` bytes."""

    def __init__(self, group: Path | None, lower_to: int) -> None:
        self._group, self._lower_to, self._steps = group, lower_to, 0

    def event(self, event: TrainingEvent, /) -> None:
        print(json.dumps({"event": event.event_name, **event.fields()}), flush=True)
        self._steps += isinstance(event, StepEnded)
        if self._lower_to and self._group is not None and self._steps >= LOWERED_AFTER:
            try:
                MemoryCgroup(self._group, None).set_limit(self._lower_to)
            except OSError:  # what is held now is more than that: after the next step, then
                return
            print(json.dumps({"event": "lowered", "step": self._steps}), flush=True)
            self._lower_to = 0


def inside(keep: Path, base: int, peak: int, steps: int, told: Told) -> None:
    """The training. `base` and `peak`: bytes of an earlier one, 0 where there was none."""
    torch.manual_seed(0)
    task = load_task(reference_of("configs/handwriting.toml"), device="cpu")
    task.model.double()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.01, momentum=0.9)
    data = Subset(task.train_data, range(steps * sum(GROUP)))
    task = replace(task, optimizer=optimizer, train_data=data, size_of=None, loss=in_double, eval_data=None)
    batch = torch.utils.data.default_collate([task.train_data[index] for index in range(8)])
    predictor = straight_line(base, MICRO, peak, nest_bytes(batch) / 8) if peak else None
    print(json.dumps({"event": "base", "bytes": own_bytes()}), flush=True)
    result = train(task, a_plan(*GROUP, intra_op_threads=2), TrainOptions(), predictor=predictor, progress=told)
    torch.save(task.model.state_dict(), keep)
    samples = [epoch.samples for epoch in result.epochs]
    print(json.dumps({"event": "done", "peak": result.peak_bytes, "samples": samples}), flush=True)


def in_double(model: nn.Module, batch: list[Tensor]) -> Tensor:
    images, labels = batch
    return functional.cross_entropy(model(images.double()), labels)


def own_bytes() -> int:
    from batchcal.machine.meters import read_status

    status = read_status()
    return 0 if status is None else status.hard_bytes


@dataclass
class Run:
    """One training, as its parent saw it."""

    exit_code: int = 0
    oom_kills: int = 0
    base: int = 0
    peak: int = 0
    step_s: list[float] = field(default_factory=list)
    recoveries: int = 0
    resized: int = 0
    recovering_s: list[float] = field(default_factory=list)
    """Steps in which something was recovered from."""
    samples: list[int] = field(default_factory=list)
    lowered_after: int | None = None
    errors: str = ""

    def hear(self, line: str, pending: list[str]) -> None:
        told = json.loads(line)
        match told["event"]:
            case "base":
                self.base = told["bytes"]
            case "lowered":
                self.lowered_after = told["step"]
            case "recovered":
                self.recoveries += 1
                pending.append("recovered")
            case "resized":
                self.resized += 1
            case "step":
                (self.recovering_s if pending else self.step_s).append(told["wall_s"])
                pending.clear()
            case "done":
                self.peak, self.samples = told["peak"], told["samples"]


@contextlib.contextmanager
def neighbour(group: MemoryCgroup) -> Iterator[None]:
    """Somebody else takes 300 MB over half a minute."""
    process = subprocess.Popen(group.command(python("-c", NEIGHBOUR)))
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run(limit: int, keep: Path, *, steps: int, base: int = 0, peak: int = 0, lower_to: int = 0, beside: bool = False) -> Run:
    found, pending = Run(), list[str]()
    with memory_cgroup(limit) as group, tempfile.TemporaryFile("w+") as errors:
        numbers = ("--base", str(base), "--peak", str(peak), "--lower-to", str(lower_to), "--steps", str(steps))
        command = python("-m", "tests.benchmarks.pressure", "--inside", str(keep), "--group", str(group.path), *numbers)
        process = subprocess.Popen(group.command(command), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        with neighbour(group) if beside else contextlib.nullcontext():
            for line in process.stdout:
                if line.startswith("{"):
                    found.hear(line, pending)
            found.exit_code = process.wait()
            found.oom_kills = group.oom_kills()
        errors.seek(0)
        found.errors = errors.read()[-1500:]
    return found


def lowered_limit(calm: Run) -> int:
    """A limit under which the undisturbed run would not fit: room for 0.6 of what its batches took."""
    return int(calm.base + 0.6 * (calm.peak - calm.base) + 40 * MIB)


def apart(one: Path, other: Path) -> float:
    """Largest difference of a parameter, relative to the largest of its tensor."""
    if not other.exists():
        return float("nan")
    first, second = torch.load(one), torch.load(other)
    return max(float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp_min(1e-12)) for name in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--inside", type=Path)
    parser.add_argument("--base", type=int, default=0)
    parser.add_argument("--peak", type=int, default=0)
    parser.add_argument("--group", type=Path)
    parser.add_argument("--lower-to", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments.inside, arguments.base, arguments.peak, arguments.steps, Told(arguments.group, arguments.lower_to))
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed.pt"
        calm = run(4 << 30, undisturbed, steps=arguments.steps)
        usual = statistics.median(calm.step_s)
        say(f"undisturbed: base {calm.base // MIB} MiB, peak {calm.peak // MIB} MiB, {usual:.3f} s a step {calm.errors}")
        for number in range(arguments.rounds):
            for beside, limit, lower_to in (
                ("lowered", int(calm.peak * 1.3), lowered_limit(calm)),
                ("neighbour", int(calm.peak + 60 * MIB), 0),
            ):
                keep = Path(folder) / f"{beside}-{number}.pt"
                found = run(
                    limit,
                    keep,
                    steps=arguments.steps,
                    base=calm.base,
                    peak=calm.peak,
                    lower_to=lower_to,
                    beside=beside == "neighbour",
                )
                rows.append(
                    {
                        "beside": beside,
                        "limit_mib": limit // MIB,
                        "lowered_to_mib": lower_to // MIB,
                        "lowered_after": found.lowered_after,
                        "exit": found.exit_code,
                        "oom_kills": found.oom_kills,
                        "recoveries": found.recoveries,
                        "resized": found.resized,
                        "samples_as_calm": found.samples == calm.samples,
                        "apart": f"{apart(undisturbed, keep):.1e}",
                        "steps_lost": round(max(((one - usual) / usual for one in found.recovering_s), default=0.0), 2),
                    }
                )
                say(str(rows[-1]) + (found.errors if found.exit_code else ""))
    survived = sum(row["exit"] == 0 and row["oom_kills"] == 0 for row in rows)
    finish(
        "pressure", rows, {"survived": f"{survived} of {len(rows)}", "oom_kills": sum(int(str(row["oom_kills"])) for row in rows)}
    )


if __name__ == "__main__":
    main()
