"""Tasks whose own code prints, hangs, leaves, crashes, refuses, or meddles with its process."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from batchcal.guard.children import child
from batchcal.workload.task import Task
from tests.faults.tasks_plain import WARM_UP, Numbers, Wide, mean_loss, plain, size_of, task_of, told


def shouting(mib: int = 1024, *, stderr: bool = False) -> Task:
    """Prints that much in one large step."""
    text = ("x" * 1023 + "\n") * 1024

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP and not said:
            said.append(True)
            stream = sys.stderr if stderr else sys.stdout
            for _ in range(mib):
                stream.write(text)
        return mean_loss(model, batch)

    said: list[bool] = []
    return dataclasses.replace(plain(0.1), loss=loss)


def hanging(where: str) -> Task:
    """Never comes back, from `load` or from a large `step`."""
    if where == "load":
        time.sleep(3600)

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            time.sleep(3600)
        return mean_loss(model, batch)

    return dataclasses.replace(plain(0.1), loss=loss)


def leaving(where: str, code: int = 0) -> Task:
    """os._exit without a word."""
    if where == "load":
        os._exit(code)

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            os._exit(code)
        return mean_loss(model, batch)

    return dataclasses.replace(plain(0.1), loss=loss)


def segfaulting(at: int) -> Task:
    """Reads from address zero once a batch has `at` samples."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) >= at:
            ctypes.string_at(0)
        return mean_loss(model, batch)

    return dataclasses.replace(plain(1.0), loss=loss)


def refusing(above: int) -> Task:
    """Has a size that it does not go beyond, for a reason of its own."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > above:
            raise ValueError(f"at most {above} samples, please")
        return mean_loss(model, batch)

    return dataclasses.replace(plain(1.0), loss=loss)


def closing_descriptors() -> Task:
    """Closes every descriptor that it did not open, as code does that makes itself a daemon."""
    os.closerange(3, 256)
    return plain(0.1)


def in_a_session_of_its_own(tell: str) -> Task:
    """Starts a process that leaves the group of its parent and would live on."""
    if os.fork() == 0:
        os.setsid()
        told(tell)
        time.sleep(60)
        os._exit(0)
    return plain(0.1)


def unprivileged() -> Task:
    """Gives root up without an exec: the process is not dumpable any more, its /proc entries are root's."""
    os.setgid(65534)
    os.setuid(65534)
    return plain()


def tampering(text: str) -> Task:
    """What it leaves as its result is not what was measured."""
    vars(child)["write_result"] = lambda directory, result: (directory / child.RESULT_NAME).write_text(text)
    return plain(0.1)


def filling(folder: str) -> Task:
    """Fills the disk that `folder` lies on, in a large step."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            fill(folder)
        return mean_loss(model, batch)

    return dataclasses.replace(plain(0.1), loss=loss)


def fill(folder: str) -> None:
    with Path(folder, "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


def many_threads(count: int = 64) -> Task:
    """Uses far more threads in a large step than it has so far."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            torch.set_num_threads(count)
            torch.ones(1024, 1024) @ torch.ones(1024, 1024)
        return mean_loss(model, batch)

    return dataclasses.replace(plain(0.1), loss=loss)


def four(answers: Connection) -> None:
    answers.send(4)


class Nested(Numbers):
    """Starts processes of its own to make its first sample. No Pool: one that is ended while it starts hangs now and then."""

    def __getitem__(self, index: int) -> object:
        if index == 0:
            context = multiprocessing.get_context("fork")
            here, there = context.Pipe(duplex=False)
            helpers = [context.Process(target=four, args=(there,)) for _ in range(2)]
            for helper in helpers:
                helper.start()
            assert [here.recv() for _ in helpers] == [4, 4]
            for helper in helpers:
                helper.join()
        return super().__getitem__(index)


def nested() -> Task:
    return task_of(Wide(), Nested(500))
