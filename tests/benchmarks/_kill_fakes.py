"""Cheap cases of `kills_everywhere`: processes forked from one that has imported torch; calibrations with the fake probe, and
trainings of a model with 200 parameters."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
import torch._dynamo  # the first optimizer step imports it: before the first fork, and not in each process
from torch import Tensor, nn

from batchcal.calibration.keys import find_or_make_trust
from batchcal.calibration.store import Loaded, load
from batchcal.cli.output.failure import in_three_parts
from batchcal.core.errors import BatchcalError, UserCodeError, exit_code_of
from batchcal.core.signals import raised_as_interrupted
from batchcal.core.units import MIB
from batchcal.detect.environment import Environment
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import Observation, ProbeRequest
from batchcal.measure.obtain import obtain
from batchcal.measure.options import options
from batchcal.measure.result import Need
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.values.training_events import CheckpointSaved, StepEnded, TrainingEvent
from batchcal.workload.spec.reference import TaskReference
from tests.benchmarks._kill_cases import KILLED, Case, Place, Verdict, a_place, fill, position
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy

FAKES: Final = {
    "calibrate": ("kill", "term", "int", "term-twice", "full-disk", "fails"),
    "train": ("kill", "term", "int", "term-twice", "full-disk", "full-disk-passes", "fails", "memory"),
}
LIFE_S: Final = {"calibrate": 0.25, "train": 0.6}
"""About as long as each kind of work takes, so that events come before, into and after it."""
EPOCHS: Final = 4
EXITS: Final = {"term": 143, "term-twice": 143, "int": 130, "kill": KILLED, "full-disk": 7, "fails": 5}


class Told:
    """How far the process reported to be, in memory that outlives it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def __getitem__(self, place: int) -> int:
        (value,) = struct.unpack_from("q", self._memory, 8 * place)
        assert isinstance(value, int)
        return value

    def set(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)


STEPS, SAVED = 0, 1


class Listens:
    """Records steps and saves; fills the disk after the first save, and empties it later."""

    def __init__(self, told: Told, event: str, folder: Path) -> None:
        self._told, self._event, self._folder = told, event, folder
        self._filler: Path | None = None

    def event(self, event: TrainingEvent, /) -> None:
        if isinstance(event, StepEnded):
            self._told.set(STEPS, event.global_step)
            if self._event == "full-disk-passes" and event.global_step == 20 and self._filler is not None:
                self._filler.unlink()
        elif isinstance(event, CheckpointSaved):
            self._told.set(SAVED, self._told[STEPS])
            if self._event.startswith("full-disk") and self._filler is None:
                self._filler = fill(self._folder)


class Eventful(FakeProbe):
    """At its second probe something happens."""

    def __init__(self, event: str, folder: Path) -> None:
        super().__init__(sleep_s=0.005)
        self._event, self._folder = event, folder

    def measure(self, request: ProbeRequest) -> Observation:
        if len(self.requests) == 1 and self._event == "fails":
            raise UserCodeError("the loss raised ValueError: shapes do not match")
        if len(self.requests) == 1 and self._event == "full-disk":
            fill(self._folder)
        return super().measure(request)


def run_fake(case: Case, environment: Environment, drawn: random.Random, undisturbed: str) -> Verdict:
    """The case, judged. `undisturbed`: digest of the parameters that every training must end with."""
    began = time.monotonic()
    small = "256k" if case.event.startswith("full-disk") else ""
    with a_place(small_disk=small) as place:
        if case.work == "calibrate":
            verdict = _calibration(case, place, environment, drawn)
        else:
            verdict = _training(case, place, drawn, undisturbed)
    verdict.wall_s = round(time.monotonic() - began, 2)
    return verdict


def _calibration(case: Case, place: Place, environment: Environment, drawn: random.Random) -> Verdict:
    (place.project / "task.py").write_text("def task(): ...\n")
    reference = TaskReference(spec="task.py:task", directory=str(place.project))
    asked = options(environment.memory.limit.value, device="cpu", memory_limit_bytes=1024 * MIB)
    path, trust = place.project / "calibration.json", find_or_make_trust(os.environ)

    def work() -> int:
        result = obtain(reference, asked, Need(), environment=environment, output=path, probe=Eventful(case.event, place.project))
        problem = result.stopped or result.not_saved
        if problem is not None:
            raise problem
        return 0

    status = _lived(work, place, case.event, drawn, LIFE_S[case.work])
    verdict = _judged(case, place, status)
    found = load(path, trust=trust)
    if status == 0 and not isinstance(found, Loaded):
        verdict.lost = f"ended, and the calibration is {found}"
    if case.event == "kill" and not verdict.ended:
        # The next one continues, and ends.
        verdict.wrong = "" if _lived(work, place, "", drawn) == 0 else f"the next one failed: {place.said[-300:]}"
        verdict.left += place.left(killed=True)
    return verdict


def _training(case: Case, place: Place, drawn: random.Random, undisturbed: str) -> Verdict:
    told, path = Told(), place.project / "run.pt"
    fails_at = drawn.randrange(2, 80)

    def work() -> int:
        torch.set_num_threads(1)
        task, calls = a_task(160, dropout=0.2), [0]

        def loss(model: nn.Module, batch: object) -> Tensor:
            calls[0] += 1
            time.sleep(0.001)
            if calls[0] == fails_at and case.event == "fails":
                raise ValueError("shapes do not match")
            if calls[0] == fails_at and case.event == "memory":
                raise MemoryError
            return cross_entropy(model, batch)

        result = train(
            replace(task, loss=loss),
            a_plan(8, 8),
            TrainOptions(epochs=EPOCHS, checkpoint_every_s=0.02, fence=False),
            checkpoint=path,
            resume=True,
            progress=Listens(told, case.event, place.project),
        )
        with suppress(OSError):
            (place.project / "digest").write_text(digest(task.model))
        return 0 if result.not_saved is None else 7

    status = _lived(work, place, case.event, drawn, LIFE_S[case.work])
    verdict = _judged(case, place, status)
    if case.event in ("term", "term-twice", "int") and status > 0 and told[STEPS] and position(path) != told[STEPS]:
        verdict.lost = f"stopped after step {told[STEPS]}, the checkpoint holds {position(path)}"
    if told[SAVED] and position(path) < told[SAVED]:
        verdict.lost = f"saved at step {told[SAVED]}, the checkpoint holds {position(path)}"
    if not case.event.startswith("full-disk") and case.event not in ("memory", "fails") and not verdict.lost:
        if status != 0:
            again = _lived(work, place, "", drawn)
            verdict.left += place.left(killed=False)
            if again != 0:
                verdict.wrong = f"resumed, it ended with {again}: {place.said[-300:]}"
        if (place.project / "digest").exists() and (place.project / "digest").read_text() != undisturbed:
            verdict.lost = "other parameters than those of an undisturbed run"
    return verdict


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(bytes(one.detach().numpy().tobytes()) for one in model.parameters())).hexdigest()


def undisturbed_digest() -> str:
    """Of a training to which nothing happens."""
    with a_place() as place:
        _training(Case("fake", "train", "", 0), place, random.Random(0), "")
        return (place.project / "digest").read_text()


def _lived(work: Callable[[], int], place: Place, event: str, drawn: random.Random, life_s: float = 0.0) -> int:
    """The exit status of a process that does `work` while `event` happens to its group."""
    pid = os.fork()
    if not pid:
        _die_after(work, place)
    number = {"kill": signal.SIGKILL, "int": signal.SIGINT}.get(event, signal.SIGTERM)
    if event in ("kill", "int", "term", "term-twice"):
        dies = time.monotonic() + drawn.uniform(0.02, life_s)
        while time.monotonic() < dies and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.005)
        for _ in range(2 if event == "term-twice" else 1):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
            time.sleep(0.002)
    limit = threading.Timer(60, os.killpg, (pid, signal.SIGKILL))
    limit.start()
    _, status = os.waitpid(pid, 0)
    limit.cancel()
    return os.waitstatus_to_exitcode(status)


def _die_after(work: Callable[[], int], place: Place) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(place.temporary)
        with raised_as_interrupted():
            code = work()
    except BatchcalError as error:
        code = exit_code_of(error)
        with suppress(OSError):
            place.stderr.write_text(in_three_parts(error))
    except ValueError as error:
        code = 5
        with suppress(OSError):
            place.stderr.write_text(str(error))
    except BaseException as error:  # noqa: BLE001 - told, and judged as wrong
        with suppress(OSError):
            place.stderr.write_text(f"Traceback {error!r}")
    finally:
        sys.stderr.flush()
        os._exit(code)


def _judged(case: Case, place: Place, status: int) -> Verdict:
    killed = case.event == "kill"
    # A signal that came before the handler was there.
    early = status in (-signal.SIGTERM, -signal.SIGINT)
    ended = status == 0 and case.event in ("kill", "term", "term-twice", "int")
    verdict = Verdict(exit=status, ended=ended or early, left=place.left(killed=killed))
    said, expected = place.said, EXITS.get(case.event, 0)
    if not verdict.ended and status != expected:
        verdict.wrong = f"exit {status} and not {expected}: {said[-300:]}"
    elif expected in (130, 143) and status == expected and "stopped by SIG" not in said:
        verdict.wrong = f"no signal is named: {said[-300:]}"
    elif "memory" in said or "Traceback" in said:
        verdict.wrong = said[-300:]
    return verdict
