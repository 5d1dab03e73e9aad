from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from batchcal.core.errors import NotSaved, UsageError
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.train.checkpoints.checkpoint import FORMAT, Standing, load_checkpoint, save_checkpoint
from batchcal.workload.task import Task
from tests.support.tasks import a_task

ROOT = Path(__file__).parents[3]


def standing(**overrides: object) -> Standing:
    values: dict[str, object] = {"seed": 1, "effective_batch": 10, "train_samples": 100, "epoch": 2, "group": 3}
    return Standing.model_validate(values | overrides)


def stepped(task: Task) -> Task:
    batch: list[Tensor] = [torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])]
    run_group(task, [MicroBatch(batch, 6)], device=torch.device("cpu"), scaler=None)
    return task


def test_a_checkpoint_restores_the_model_the_optimizer_and_the_random_state(tmp_path: Path) -> None:
    path, task = tmp_path / "run.pt", stepped(a_task())
    torch.manual_seed(5)
    random.seed(5)
    save_checkpoint(path, standing(weighted_loss=1.5), task=task)
    expected = (torch.rand(3), random.random())
    torch.manual_seed(6)
    random.seed(6)
    other = a_task()
    assert load_checkpoint(path, other) == standing(weighted_loss=1.5)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    for mine, theirs in zip(task.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(task.optimizer.state[mine]["exp_avg"], other.optimizer.state[theirs]["exp_avg"])
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_a_missing_checkpoint_suggests_omitting_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint") as caught:
        load_checkpoint(tmp_path / "none.pt", a_task())
    assert "leave out --resume" in caught.value.try_


class Bomb:
    """What a pickle can do when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("exploded",))


def test_loading_a_checkpoint_does_not_run_pickled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"standing": Bomb()}, "bomb.pt")
    Path("old-style.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.pt", "old-style.pt"):
        with pytest.raises(UsageError, match="not a checkpoint that can be resumed"):
            load_checkpoint(Path(name), a_task())
    assert not Path("exploded").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, standing(), task=a_task())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 or kept == 0 else kept * len(whole))])
    with pytest.raises(UsageError, match="not a checkpoint that can be resumed"):
        load_checkpoint(path, a_task())


def test_a_folder_or_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a checkpoint that can be resumed"):
        load_checkpoint(tmp_path, a_task())
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(UsageError) as caught:
        load_checkpoint(tmp_path / "other.pt", a_task())
    assert "another program" in caught.value.known
    torch.save({"standing": "{}"}, tmp_path / "odd.pt")
    with pytest.raises(UsageError) as caught:
        load_checkpoint(tmp_path / "odd.pt", a_task())
    assert "is not valid" in caught.value.known


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", standing(format=FORMAT + 1), task=a_task())
    with pytest.raises(UsageError) as caught:
        load_checkpoint(tmp_path / "run.pt", a_task())
    assert f"format {FORMAT + 1}" in caught.value.known


def test_an_error_names_checkpoint_parameters_that_the_model_lacks(tmp_path: Path) -> None:
    """Before, only the class of the model was."""
    later = stepped(a_task())
    later.model.add_module("head", nn.Linear(2, 2))
    save_checkpoint(tmp_path / "run.pt", standing(), task=later)
    with pytest.raises(UsageError, match="another model or optimizer") as caught:
        load_checkpoint(tmp_path / "run.pt", a_task())
    assert '"head.weight", "head.bias"' in caught.value.known
    assert "create those parameters in the factory" in caught.value.try_


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, standing(), task=stepped(a_task()))
    model = nn.Linear(3, 3)
    task = a_task()
    other_model = Task(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=task.train_data, loss=task.loss
    )
    with pytest.raises(UsageError, match="another model or optimizer"):
        load_checkpoint(path, other_model)
    half = Task(
        model=task.model,
        optimizer=torch.optim.AdamW(list(task.model.parameters())[:2]),
        train_data=task.train_data,
        loss=task.loss,
    )
    with pytest.raises(UsageError, match="another model or optimizer"):
        load_checkpoint(path, half)


def test_an_unwritable_checkpoint_path_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(NotSaved, match="could not be written"):
        save_checkpoint(file / "run.pt", standing(), task=a_task())


FULL_DISK = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from batchcal.core.errors import NotSaved
from batchcal.train.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from tests.support.tasks import a_task
from tests.train.checkpoints.test_checkpoint import standing
path = Path({folder!r}) / "run.pt"
save_checkpoint(path, standing(epoch=1), task=a_task())
ballast = Path({folder!r}) / "ballast"
with ballast.open("wb", buffering=0) as file:
    try:
        while True: file.write(b"x" * 4096)
    except OSError: pass
try: save_checkpoint(path, standing(epoch=2), task=a_task())
except NotSaved as error: print("not saved")
print(load_checkpoint(path, a_task()).epoch, sorted(name.name for name in path.parent.iterdir()))
"""


@pytest.mark.child
@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_reported_and_the_earlier_checkpoint_is_kept(tmp_path: Path) -> None:
    code = FULL_DISK.format(root=str(ROOT), folder=str(tmp_path))
    script = f'mount -t tmpfs -o size=256k tmpfs {tmp_path} && exec {sys.executable} -c "$CODE"'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=os.environ | {"CODE": code}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["not saved", "1 ['ballast', 'run.pt']"]


def save_for_ever(path: Path, told: Connection) -> None:
    task, epoch = a_task(), 0
    while True:
        save_checkpoint(path, standing(epoch=epoch), task=task)
        told.send(epoch)
        epoch += 1


@pytest.mark.smoke
@pytest.mark.child
@pytest.mark.skipif(sys.platform != "linux", reason="forks, to be killed within milliseconds")
def test_a_writer_killed_at_any_time_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    path, fork, moments = tmp_path / "run.pt", multiprocessing.get_context("fork"), random.Random(3)
    for _ in range(25):
        here, there = fork.Pipe(duplex=False)
        writer = fork.Process(target=save_for_ever, args=(path, there))
        writer.start()
        there.close()
        finished = here.recv()
        time.sleep(moments.uniform(0, 0.01))
        writer.kill()
        writer.join()
        with contextlib.suppress(EOFError, OSError):
            while True:
                finished = here.recv()
        here.close()
        writer.close()
        assert load_checkpoint(path, a_task()).epoch >= finished
    assert len(list(tmp_path.iterdir())) <= 2, "killed writers leave one temporary file at most"
