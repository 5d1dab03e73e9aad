"""Workers leave signals to their parent, end with it, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import pytest
from torch.utils.data import Dataset, dataloader

from batchcal.guard.cleanup.shared_names import sweep_abandoned
from batchcal.runtime.worker_processes import Loader, leave_signals_to_the_parent
from tests.support.leftovers import look, settled

pytestmark = pytest.mark.child
ROOT: Final = Path(__file__).parents[2]
TRAINS: Final = """
import pathlib, sys, time
import torch
from batchcal.core.errors import Interrupted, exit_code_of
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from dataclasses import replace
from tests.support.plans import a_plan
from tests.support.tasks import a_task, points


class Slow(torch.utils.data.Dataset):
    def __init__(self):
        self.points = points(40)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(0.01)
        return self.points[index]


class Tells:
    def event(self, event):
        print(event.event_name, flush=True)


if __name__ == "__main__":
    task = replace(a_task(), train_data=Slow(), eval_data=None)
    plan = a_plan(4, num_workers=2, prefetch_factor=2, multiprocessing_context=sys.argv[2])
    try:
        train(task, plan, TrainOptions(epochs=1000), checkpoint=pathlib.Path(sys.argv[1]), progress=Tells())
    except Interrupted as error:
        print(error.known, flush=True)
        sys.exit(exit_code_of(error))
"""


def training(checkpoint: Path, context: str = "fork") -> subprocess.Popen[str]:
    script = checkpoint.with_name("trains.py")
    script.write_text(TRAINS)
    command = [sys.executable, str(script), str(checkpoint), context]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def await_step(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if line == "step\n":
            return
    pytest.fail("".join(told))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_group_saves_a_checkpoint(tmp_path: Path, number: int) -> None:
    checkpoint = tmp_path / "run.pt"
    process = training(checkpoint)
    await_step(process)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out
    assert f"the checkpoint is {checkpoint}" in out
    assert checkpoint.exists()


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_workers_exit_when_their_parent_is_killed(tmp_path: Path, context: str) -> None:
    before = look(token=os.environ["LEFTOVERS_TOKEN"])
    process = training(tmp_path / "run.pt", context)
    await_step(process)
    process.kill()
    process.communicate(timeout=60)
    assert not settled(lambda: look(token=os.environ["LEFTOVERS_TOKEN"]), before, seconds=4.0).processes
    sweep_abandoned()
    if context == "forkserver":
        # A known gap: the server names its folder itself, without a process id, so that nothing shows whose it was.
        for folder in Path(tempfile.gettempdir()).glob("pymp-*"):
            shutil.rmtree(folder)


def test_a_hanging_worker_is_ended_with_sigkill() -> None:
    loader = Loader(Hangs(), num_workers=1, worker_init_fn=leave_signals_to_the_parent)
    iterator = iter(loader)
    assert isinstance(iterator, dataloader._MultiProcessingDataLoaderIter)
    (worker,) = iterator._workers
    time.sleep(0.5)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(0.3)
    assert worker.is_alive(), "a signal to the process group does not end it"
    # torch's own handler would take the end of the worker for an accident, if it saw it before `join` does.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker.terminate()
    worker.join(10)
    signal.signal(signal.SIGCHLD, handler)
    assert worker.exitcode == -signal.SIGKILL
    iterator._shutdown_workers()
    del iterator


class Hangs(Dataset[object]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        while True:
            time.sleep(100)
