"""The k-th allocation of an optimizer step fails, for one k after the other: the parameters are those of an undisturbed run, or
the training stops and says so. Never silently others.

Allocations fail for real, in malloc (tests/faults/shim.c is preloaded); each k in a process of its own, forked once torch is
there. The death of the process counts as a stop: oneDNN follows a null pointer where a small allocation fails.

    python -m tests.benchmarks.allocation_sweep --least 4KiB --every 1
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from batchcal.core.errors import BatchcalError
from batchcal.core.units import parse_size
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.values.training_events import StepEnded, TrainingEvent, TrainingStarted
from batchcal.workload.task import Task
from tests.benchmarks._report import finish, say
from tests.support.plans import a_plan
from tests.support.shim import built

OPTIMIZERS: Final = ("SGD", "Adam", "AdamW", "AdamW-fused")
MODELS: Final = ("plain", "dropout", "batchnorm")
STEPS: Final = 3
FAILING_STEP: Final = 2
"""The optimizer's state is there by then; in the first step it is made."""
EQUAL: Final = 1e-6
TIMEOUT_S: Final = 60


def a_task(model_name: str, optimizer_name: str) -> Task:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(8) if model_name == "batchnorm" else nn.Identity()
    dropout = nn.Dropout(0.2 if model_name == "dropout" else 0.0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), norm, nn.ReLU(), dropout, nn.Flatten(), nn.Linear(8 * 36, 64), nn.GELU(), nn.Linear(64, 4)
    )
    inputs = torch.randn(32 * STEPS, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(0, 4, (32 * STEPS,), generator=torch.Generator().manual_seed(3))

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        seen, wanted = batch
        return functional.cross_entropy(model(seen), wanted)

    match optimizer_name:
        case "SGD":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        case "Adam":
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        case name:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=name == "AdamW-fused")
    return Task(model=model, optimizer=optimizer, train_data=TensorDataset(inputs, labels), loss=loss)


class ArmedAt:
    """Hears the training; from the end of the step before on, allocations are counted down."""

    def __init__(self, step: int, k: int, least: int) -> None:
        self._step, self._k, self._least = step, k, least

    def event(self, event: TrainingEvent, /) -> None:
        stepped = isinstance(event, StepEnded)
        if stepped or (isinstance(event, TrainingStarted) and self._step == 1):
            self._step -= stepped
            if self._step == 1:
                arm(self._k, self._least)
            elif stepped:
                arm(-1, self._least)


def arm(k: int, least: int) -> None:
    ctypes.CDLL(None).fault_arm(ctypes.c_long(k), ctypes.c_size_t(least), ctypes.c_int(0))


def trained(model: str, optimizer: str, hears: ArmedAt | None) -> Tensor:
    """Parameters and buffers after a training of some steps of 16 + 16 samples."""
    task = a_task(model, optimizer)
    train(task, a_plan(16, 16), TrainOptions(fence=False), progress=hears)
    return torch.cat([value.detach().double().flatten() for value in task.model.state_dict().values()])


def one(model: str, optimizer: str, hears: ArmedAt, expected: Tensor) -> str:
    """What became of it, told by a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            told = outcome(model, optimizer, hears, expected)
            os.write(writing, told.encode())
        finally:
            os._exit(0)  # whatever happens, only one process goes on
    os.close(writing)
    told = os.read(reading, 4096).decode()
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return told or f"died by signal {os.WTERMSIG(status)}"


def outcome(model: str, optimizer: str, hears: ArmedAt, expected: Tensor) -> str:
    # Made beforehand: nothing can be allocated when it is needed most.
    disarm = partial(ctypes.CDLL(None).fault_arm, ctypes.c_long(-1), ctypes.c_size_t(1), ctypes.c_int(0))
    try:
        result = trained(model, optimizer, hears)
    except BatchcalError as error:
        disarm()
        return f"stopped: {error.what[:60]}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is a stop that says so
        disarm()
        return f"raised {type(error).__name__}: {str(error)[:60]}"
    disarm()
    apart = float((result - expected).abs().max())
    return "equal" if apart <= EQUAL else f"DIFFERENT: by {apart:.2e}"


def sweep(least: int, every: int, first: int, most: int, step: int) -> dict[str, dict[str, int]]:
    """By model and optimizer: how many of the k ended how."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, int]] = {}
    for model in MODELS:
        for optimizer in OPTIMIZERS:
            expected = trained(model, optimizer, None)
            ends: Counter[str] = Counter()
            for k in range(first, most, every):
                told = one(model, optimizer, ArmedAt(step, k, least), expected)
                ends[told.split(":")[0]] += 1
                if told.startswith("DIFFERENT"):
                    print(f"{model} {optimizer} k={k} least={least} step={step}: {told}", file=sys.stderr)
            found[f"{model}/{optimizer}"] = dict(ends)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", default="4KiB", help="allocations of at least so many bytes fail")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--most", type=int, default=200, help="the last k")
    parser.add_argument("--step", type=int, default=FAILING_STEP)
    parser.add_argument("--inside", action="store_true", help="the library is preloaded")
    arguments = parser.parse_args()
    least = parse_size(arguments.least, name="least")
    if arguments.inside:
        print(json.dumps(sweep(least, arguments.every, arguments.first, arguments.most, arguments.step)))
        return
    with tempfile.TemporaryDirectory() as folder:
        shim = built(Path(folder))
        if shim is None:
            raise SystemExit("there is no C compiler")
        ended = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.allocation_sweep", "--inside", *sys.argv[1:]],
            env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, dict[str, int]] = json.loads(ended.stdout.splitlines()[-1])  # oneDNN speaks on stdout where it fails
    rows = [{"training": name, **ends} for name, ends in found.items()]
    for row in rows:
        say(str(row))
    different = sum(ends.get("DIFFERENT", 0) for ends in found.values())
    columns = ["training", *sorted({end for ends in found.values() for end in ends})]
    failures = sum(sum(ends.values()) for ends in found.values())
    finish("allocation_sweep", rows, {"different": different, "failures": failures}, columns=columns)


if __name__ == "__main__":
    main()
