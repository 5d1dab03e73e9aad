"""Real cases of `kills_everywhere`: the command line, with DataLoader workers, as a job gets signals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.benchmarks._kill_cases import KILLED, Case, Place, Verdict, a_place, fill, position
from tests.support.leftovers import TOKEN

REALS: Final = {
    "calibrate": ("kill", "term", "term-group", "term-job", "int-group"),
    "train": (
        *("kill", "kill-process", "term", "term-group", "term-job", "term-twice", "int-group"),
        *("kill-worker", "full-disk", "fails", "worker-fails"),
    ),
}
LIMITS: Final = ("--memory-limit", "1500MiB", "--workers", "2", "--effective-batch", "64", "--max-batch", "32")
TASK: Final = """
import os, time
import torch
from torch import nn
import batchcal


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return int(os.environ.get("SAMPLES", 20_000))

    def __getitem__(self, index):
        time.sleep(0.0005)
        if os.environ.get("EVENT") == "worker-fails" and index == 77:
            raise ValueError("sample 77 is broken")
        return torch.full((64,), float(index % 5))


def task(device=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1))
    calls = [0]

    def loss(model, batch):
        calls[0] += 1
        if os.environ.get("EVENT") == "fails" and calls[0] == 30:
            raise ValueError("shapes do not match")
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Slow(), loss=loss)
"""
LONGEST_S: Final = {"calibrate": 9.0, "train": 11.0}
TIMEOUT_S: Final = 90.0
EXITS: Final = {"kill": KILLED, "kill-process": KILLED, "kill-worker": 1, "full-disk": 7, "fails": 5, "worker-fails": 5}


class Project:
    """A folder with a task and its calibration, copied for each case."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="kp-", dir="/tmp"))
        (self.path / "task.py").write_text(TASK)
        command = [sys.executable, "-m", "batchcal", "calibrate", "task.py:task", *LIMITS, "--time-limit", "60s", "--force"]
        subprocess.run(command, cwd=self.path, check=True, capture_output=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def run_real(case: Case, project: Project, drawn: random.Random) -> Verdict:
    """The case, judged."""
    began = time.monotonic()
    with a_place(small_disk="192k" if case.event == "full-disk" else "") as place:
        shutil.copytree(project.path, place.project, dirs_exist_ok=True)
        verdict = _run(case, place, drawn)
    verdict.wall_s = round(time.monotonic() - began, 1)
    return verdict


def _run(case: Case, place: Place, drawn: random.Random) -> Verdict:
    command = [sys.executable, "-m", "batchcal", case.work, "task.py:task", *LIMITS]
    command += ["--time-limit", "12s", "--force"] if case.work == "calibrate" else ["--no-calibrate", "--checkpoint-every", "1s"]
    environment = os.environ | {"EVENT": case.event}
    if case.event in ("full-disk", "fails", "worker-fails"):
        environment["SAMPLES"] = "2000"
    with place.stderr.open("w") as said, place.stderr.with_name("stdout").open("w") as out:
        process = subprocess.Popen(command, cwd=place.project, env=environment, stdout=out, stderr=said, start_new_session=True)
    if case.event == "full-disk":
        _wait_for(place, process, "training_started")
        fill(place.project)
    elif case.event not in ("fails", "worker-fails"):
        with suppress(subprocess.TimeoutExpired):
            process.wait(drawn.uniform(0.5, LONGEST_S[case.work]))
        if case.event == "kill-worker":
            _wait_for(place, process, "step")
        if process.poll() is None:
            _happen(case.event, process.pid, place)
    try:
        status = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Verdict(exit=0, wrong=f"did not end within {TIMEOUT_S:g} s: {place.said[-300:]}", left=place.left(killed=True))
    return _judged(case, place, status)


def _wait_for(place: Place, process: subprocess.Popen[bytes], event: str) -> None:
    until = time.monotonic() + TIMEOUT_S
    while process.poll() is None and not _events(place, event) and time.monotonic() < until:
        time.sleep(0.05)


def _happen(event: str, pid: int, place: Place) -> None:
    number = {"kill": signal.SIGKILL, "kill-process": signal.SIGKILL, "int-group": signal.SIGINT}.get(event, signal.SIGTERM)
    with suppress(ProcessLookupError):
        if event in ("term", "kill-process"):
            os.kill(pid, number)
        elif event == "term-job":
            for one in _job(place):
                with suppress(ProcessLookupError):
                    os.kill(one, number)
        elif event == "kill-worker":
            workers = [one for one in _job(place) if one != pid and "resource_tracker" not in _command(one)]
            if workers:
                os.kill(workers[-1], signal.SIGKILL)
        elif event == "term-twice":
            os.kill(pid, number)
            os.killpg(pid, number)
        else:
            os.killpg(pid, number)


def _job(place: Place) -> list[int]:
    """Every process that the command started, as systemd and SLURM see it."""
    mark, found = f"{TOKEN}={place.token}".encode(), []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if (
                folder.name.isdigit()
                and int(folder.name) != os.getpid()
                and mark in (folder / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(folder.name))
    return sorted(found)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def _events(place: Place, name: str) -> list[dict[str, object]]:
    """Of the training's log."""
    log = place.project / ".batchcal" / "run.jsonl"
    found: list[dict[str, object]] = []
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == name:
                found.append(event)
    return found


def _judged(case: Case, place: Place, status: int) -> Verdict:
    killed = case.event in ("kill", "kill-process")
    said = place.said
    expected = 130 if case.event == "int-group" else EXITS.get(case.event, 143)
    # Before the command line handles signals, and after the training has saved everything, the interpreter ends by the signal.
    by_signal = status in (-signal.SIGTERM, -signal.SIGINT) and (not said or "training_ended" in said)
    ended = status == 0 and case.event not in ("full-disk", "fails", "worker-fails")
    verdict = Verdict(exit=status, ended=ended or by_signal, left=place.left(killed=killed))
    tail = said[-400:]
    if not verdict.ended:
        if status != expected:
            verdict.wrong = f"exit {status} and not {expected}: {tail}"
        elif expected in (130, 143) and "stopped by SIG" not in tail:
            verdict.wrong = f"no signal is named: {tail}"
        elif "Traceback" in said and expected != 5:
            verdict.wrong = f"a traceback: {tail}"
        elif any(
            text in line for text in ("memory ran out", "out of memory") for line in said.splitlines() if line.startswith("error")
        ):
            verdict.wrong = f"memory is blamed: {tail}"
        elif case.event == "kill-worker" and "SIGKILL" not in tail:
            verdict.wrong = f"the worker's signal is not named: {tail}"
    if case.work == "train":
        verdict.lost = _lost(case, place, status)
    return verdict


def _lost(case: Case, place: Place, status: int) -> str:
    checkpoints = list((place.project / ".batchcal").glob("*.pt"))
    holds = position(checkpoints[0] if checkpoints else None)
    steps, saves = _events(place, "step"), _events(place, "checkpoint_saved")
    last = max((int(str(one["global_step"])) for one in steps), default=0)
    saved = 0
    for one in saves:
        at = [step for step in steps if (step["epoch"], step["samples_seen"]) == (one["epoch"], one["samples_seen"])]
        saved = max([saved, *(int(str(step["global_step"])) for step in at)])
    if saves and holds < saved:
        return f"saved at step {saved}, the checkpoint holds {holds}"
    if status in (130, 143, 1, 5) and last and holds < last and case.event != "full-disk":
        return f"stopped after step {last}, the checkpoint holds {holds}"
    return ""
