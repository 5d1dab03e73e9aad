"""Tasks that misbehave, each in one way. Factories for batchcal; run in its children only.

They behave in the warm-up, whose batches hold `WARM_UP` samples at most, and misbehave at larger ones.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from batchcal.guard import child
from batchcal.workload.task import Task

MIB: Final = 1 << 20
WARM_UP: Final = 2
FEATURES: Final = 4


class Numbers(Dataset[object]):
    """As many small samples as are wanted."""

    def __init__(self, samples: int = 20_000) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> object:
        return torch.full((FEATURES,), float(index % 7))


class Wide(nn.Module):
    """Holds `mib` MiB of activations for each sample, with next to no parameters."""

    def __init__(self, mib: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(FEATURES))
        self.repeats = int(mib * MIB) // 4 // FEATURES // 2

    def forward(self, inputs: Tensor) -> Tensor:
        wide = (inputs * self.scale).repeat(1, self.repeats)
        return (wide * wide).mean()


def mean_loss(model: nn.Module, batch: object) -> Tensor:
    result = model(batch)
    assert isinstance(result, Tensor)
    return result.mean()


def size_of(batch: object) -> int:
    return batch.shape[0] if isinstance(batch, Tensor) else len(batch) if isinstance(batch, Sequence) else 0


def task_of(model: nn.Module, data: Dataset[object] | None = None) -> Task:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=data or Numbers(), loss=mean_loss)


def plain(mib: float = 1.0, samples: int = 20_000) -> Task:
    """Misbehaves in no way."""
    return task_of(Wide(mib), Numbers(samples))


def slow(tell: str, seconds: float = 5.0) -> Task:
    """Takes a mebibyte a sample in every large step, writes its process id to the file `tell`, and then takes its time."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        size = size_of(batch)
        held = torch.ones(size * MIB // 4 if size > WARM_UP else 1)
        if size > WARM_UP:
            told(tell)
            time.sleep(seconds)
        return mean_loss(model, batch) + held[0]

    return dataclasses.replace(plain(0.01), loss=loss)


def told(tell: str) -> None:
    """Written beside and renamed, so that a reader sees a whole number."""
    beside = Path(f"{tell}.part")
    beside.write_text(str(os.getpid()))
    beside.rename(tell)


# Memory


def creeping(step_mib: int = 8) -> Task:
    """Takes more, and more, in one step, and stops at nothing."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        held: list[Tensor] = []
        while size_of(batch) > WARM_UP:
            held.append(torch.ones(step_mib * MIB // 4))
        return mean_loss(model, batch)

    return dataclasses.replace(plain(), loss=loss)


def leaking(mib: int = 64) -> Task:
    """Forgets nothing: `mib` MiB more with every large step."""
    kept: list[Tensor] = []

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            kept.append(torch.ones(mib * MIB // 4))
        return mean_loss(model, batch)

    return dataclasses.replace(plain(), loss=loss)


def out_of_memory_in(kind: str) -> Task:
    """Asks the one allocator for a mebibyte a sample, the large way, and far more than there is."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        size = size_of(batch)
        if size > WARM_UP:
            match kind:
                case "python":
                    bytearray(size * MIB)
                case "numpy":
                    np.ones(size * MIB, dtype=np.uint8)
                case "mmap":
                    with mmap.mmap(-1, size * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
                        pass
        return mean_loss(model, batch)

    return dataclasses.replace(plain(0.01), loss=loss)


def greedy_while_loading(mib: int = 4096) -> Task:
    """Has more in its dataset than there is memory."""
    arrays = [np.ones(8 * MIB, dtype=np.uint8) for _ in range(mib // 8)]
    return task_of(Wide(), Numbers(len(arrays)))


class Mapped(Numbers):
    """Reads all of a file through a mapping before its first sample, and again with every hundredth."""

    def __init__(self, path: str) -> None:
        super().__init__(2_000)
        self.path = path
        self.array: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None

    def __getitem__(self, index: int) -> object:
        if self.array is None:
            self.array = np.memmap(self.path, dtype=np.uint8, mode="r")
            self.array[::4096].sum()
        if index % 100 == 0:
            self.array[::4096].sum()
        return super().__getitem__(index)


def mapped(path: str) -> Task:
    return task_of(Wide(), Mapped(path))


def big_arrays(mib: int) -> Task:
    """The dataset holds `mib` MiB, which is demand like any other."""
    data = Numbers()
    vars(data)["array"] = np.ones(mib * MIB, dtype=np.uint8)
    return task_of(Wide(), data)


def failing_allocation(k: int, least: int, persistent: bool) -> Task:
    """A small CNN; from its first large step on the k-th allocation of `least` bytes or more fails (shim.c is preloaded)."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 1, FEATURES)), nn.Upsample((16, 16)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 4),
    )  # fmt: skip
    armed: list[bool] = []

    def loss(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP and not armed:
            armed.append(True)
            arm = ctypes.CDLL(None).fault_arm
            arm(ctypes.c_long(k), ctypes.c_size_t(least), ctypes.c_int(persistent))
        return functional.mse_loss(model(batch), torch.zeros(size_of(batch), 4))

    return dataclasses.replace(task_of(model), loss=loss)


# User code


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
    vars(child)["leave_result"] = lambda directory, result: (directory / child.RESULT_NAME).write_text(text)
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


def four() -> int:
    return 4


class Nested(Numbers):
    """Starts processes of its own to make its first sample."""

    def __getitem__(self, index: int) -> object:
        if index == 0:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.apply(four) == 4
        return super().__getitem__(index)


def nested() -> Task:
    return task_of(Wide(), Nested(500))


# Workers


class InWorkers(Numbers):
    """Behaves in the main process; a DataLoader worker meets `fault`."""

    def __init__(self, fault: str, tell: str = "") -> None:
        super().__init__(2_000)
        self.fault = fault
        self.tell = tell
        self.held: list[object] = []

    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            if self.tell:
                told(f"{self.tell}-{os.getpid()}")
            misbehave(self.fault, self.held)
        return super().__getitem__(index)


def misbehave(fault: str, held: list[object]) -> None:
    match fault:
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "stuck":
            time.sleep(3600)
        case "raises":
            raise KeyError("no such sample")
        case "holds" if not held:
            held.append(np.ones(100 * MIB, dtype=np.uint8))
        case "grows":
            held.append(np.ones(8 * MIB, dtype=np.uint8))


def in_workers(fault: str, tell: str = "") -> Task:
    return task_of(Wide(0.1), InWorkers(fault, tell))


class Images(Numbers):
    """Each sample has `mib` MiB, which travels from a worker through shared memory."""

    def __init__(self, mib: float) -> None:
        super().__init__(2_000)
        self.numbers = int(mib * MIB) // 4

    def __getitem__(self, index: int) -> object:
        return torch.ones(self.numbers)


class First(nn.Module):
    """Looks at no more than the first values of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 1)

    def forward(self, batch: Tensor) -> Tensor:
        result = self.linear(batch[:, :FEATURES])
        assert isinstance(result, Tensor)
        return result


def images(mib: float = 1.0) -> Task:
    return task_of(First(), Images(mib))


class ManyTensors(Numbers):
    """A sample of so many tensors that a batch of them needs that many descriptors on its way from a worker."""

    def __getitem__(self, index: int) -> object:
        return [torch.ones(FEATURES) for _ in range(200)]


def many_tensors() -> Task:
    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return mean_loss(model, batch[0])

    return dataclasses.replace(task_of(Wide(0.1), ManyTensors(500)), loss=loss)


def unpicklable_collate(samples: list[Tensor]) -> object:
    return [torch.stack(samples), lambda: 0]


def unpicklable() -> Task:
    """A batch that cannot travel from a worker."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return mean_loss(model, batch[0])

    return dataclasses.replace(task_of(Wide(0.1)), collate_fn=unpicklable_collate, loss=loss)


# Models and data that are merely unusual


class Normed(nn.Module):
    """BatchNorm, which refuses a batch of one sample while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.wide = Wide()

    def forward(self, inputs: Tensor) -> Tensor:
        result = self.wide(self.norm(inputs))
        assert isinstance(result, Tensor)
        return result


def normed(samples: int = 20_000) -> Task:
    return task_of(Normed(), Numbers(samples))


class Branching(nn.Module):
    """What it computes depends on the data, which a tracer without data cannot follow."""

    def __init__(self, mib: float) -> None:
        super().__init__()
        self.wide = Wide(mib)

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = inputs[inputs.sum(dim=1) > -1]
        if float(chosen.sum()) < 0:
            chosen = -chosen
        result = self.wide(chosen)
        assert isinstance(result, Tensor)
        return result


def branching(mib: float = 1.0) -> Task:
    return task_of(Branching(mib))


def contrastive(width: int = 32) -> Task:
    """Compares every sample with every other: memory grows with the square of the batch."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        embedded = functional.normalize(model(batch), dim=1)
        return functional.cross_entropy(embedded @ embedded.T, torch.arange(len(embedded)))

    return dataclasses.replace(task_of(nn.Linear(FEATURES, width)), loss=loss)


class Stream(IterableDataset[object]):
    """Can only be read in order, and never ends."""

    def __iter__(self) -> Iterator[object]:
        index = 0
        while True:
            yield torch.full((FEATURES,), float(index % 7))
            index += 1


def stream() -> Task:
    return task_of(Wide(), Stream())


class Recurrent(nn.Module):
    """A GRU over a long sequence: many small operations."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, 64, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.gru(inputs[:, None, :].repeat(1, 200, 1))
        result = self.head(states)
        assert isinstance(result, Tensor)
        return result


def recurrent() -> Task:
    return task_of(Recurrent())


def compiled(backend: str) -> Task:
    """torch.compile: the first step of every new shape takes long."""
    task = plain()
    model = nn.Sequential(nn.Linear(FEATURES, 256), nn.GELU(), nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, FEATURES), Wide())
    compiled_model: object = torch.compile(model, backend=backend)
    assert isinstance(compiled_model, nn.Module)
    return dataclasses.replace(task, model=compiled_model, optimizer=torch.optim.Adam(compiled_model.parameters()))
