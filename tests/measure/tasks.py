"""Small tasks for real probes: so many MiB a sample, and each with one thing that goes wrong."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset

from batchcal.core.errors import UsageError
from batchcal.workload.task import Task

FEATURES = 256
WARM_UP = 2
"""No larger batch than this is run before the fence is armed."""


class Numbers(Dataset[object]):
    """Samples of 1 KiB, made when they are asked for."""

    def __init__(self, samples: int = 100_000, *, features: int = FEATURES) -> None:
        self._samples = samples
        self._features = features

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((self._features,), index % 7 / 7)


class Stream(IterableDataset[object]):
    """The same without an end."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.full((FEATURES,), 0.5)


class Wide(nn.Module):
    """Holds `repeats` KiB a sample three to five times over: what it repeats, and what two element-wise steps keep of it."""

    scale: Tensor

    def __init__(self, repeats: int) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.register_buffer("scale", torch.ones(1))
        self.repeats = repeats

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        return outputs.repeat(1, self.repeats).tanh() * self.scale


def loss(model: nn.Module, batch: object) -> Tensor:
    outputs = model(batch)
    assert isinstance(outputs, Tensor)
    return outputs.square().mean()


def size_of(batch: object) -> int:
    assert isinstance(batch, Tensor)
    return len(batch)


def task_of(model: nn.Module, data: Dataset[object] | None = None, eval_data: Dataset[object] | None = None) -> Task:
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        train_data=Numbers() if data is None else data,
        loss=loss,
        eval_data=eval_data,
    )


def wide(repeats: int = 512, samples: int = 100_000) -> Task:
    return task_of(Wide(repeats), Numbers(samples), Numbers(50))


def stream() -> Task:
    return task_of(Wide(64), Stream())


def untraceable() -> Task:
    """Looks at values, which a tensor without memory does not have."""

    class Looking(Wide):
        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.sum().item() < 0:
                raise ValueError("negative")
            return super().forward(inputs)

    return task_of(Looking(64))


def failing_evaluation(way: str) -> Task:
    """Trains, and fails in every evaluation."""

    def evaluated(model: nn.Module, batch: object) -> Tensor:
        match way:
            case "raises":
                raise ValueError("no evaluation")
            case "exits":
                os._exit(7)
            case "segfaults":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "allocates":
                torch.zeros(8 << 30, dtype=torch.uint8)
            case "hangs":
                time.sleep(600)
        return torch.zeros(())

    task = wide(repeats=64)
    return dataclasses.replace(task, eval_step=evaluated)


def crashing_without_memory() -> Task:
    """Native code that reads what a tensor points at: without memory there is nothing."""

    def crash(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        if isinstance(model.get_parameter("linear.weight"), FakeTensor):
            ctypes.string_at(0)
        return loss(model, batch)

    return dataclasses.replace(wide(repeats=64), loss=crash)


def leaking(mib: int = 16) -> Task:
    """Keeps `mib` MiB of every large step."""
    kept: list[Tensor] = []

    def keep(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            kept.append(torch.ones(mib << 18))
        return loss(model, batch)

    return dataclasses.replace(wide(repeats=8), loss=keep)


def constant() -> Task:
    """Looks at values, and holds nothing that the profiler could see grow: its samples are of one number."""

    def tiny(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        assert batch.sum().item() >= 0
        return next(model.parameters()).sum() ** 2

    model = nn.Linear(4, 4)
    return Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_data=Numbers(features=1),
        loss=tiny,
        collate_fn=lambda samples: torch.zeros(1),
    )


def refusing(above: int = 8) -> Task:
    def refuse(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > above:
            raise ValueError(f"no more than {above} samples")
        return loss(model, batch)

    model = Wide(8)
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=Numbers(), loss=refuse)


def failing() -> Task:
    print("looking for the data")
    raise FileNotFoundError("no data at /nowhere")


def asking_for_a_flag() -> Task:
    raise UsageError("this task needs a corpus", known="none was given", try_="[task.args] corpus = ...")


def hungry(mib: int = 1500) -> Task:
    """Needs more to be loaded than there is."""
    held = torch.ones(mib << 18)
    task = task_of(Wide(8))
    vars(task.model)["held"] = held
    return task


def dying(by: int = signal.SIGKILL) -> Task:
    """Killed in its first large step."""

    def die(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > WARM_UP:
            os.kill(os.getpid(), by)
            time.sleep(30)
        return loss(model, batch)

    model = Wide(8)
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=Numbers(), loss=die)


def dying_in_load() -> Task:
    os.kill(os.getpid(), signal.SIGKILL)
    return wide()


def hanging() -> Task:
    def hang(model: nn.Module, batch: object) -> Tensor:
        if size_of(batch) > 64:
            time.sleep(600)
        return loss(model, batch)

    model = Wide(8)
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=Numbers(), loss=hang)


def sleeping() -> Task:
    time.sleep(600)
    return wide()


class Broken(Numbers):
    """Its workers die."""

    def __getitem__(self, index: int) -> Tensor:
        if torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


def broken_workers() -> Task:
    return task_of(Wide(8), Broken())


def heavy_samples(mib: int) -> Task:
    """`mib` MiB a sample, and as much again for each of the two results that the backward pass needs."""
    return task_of(Wide(mib * 1024))


def crowded_trace(mib: int = 4096) -> Task:
    """Takes `mib` MiB of real memory where it is run without memory, as a trace of many operations does; little in training."""
    held: list[bytearray] = []

    def crowd(model: nn.Module, batch: object) -> Tensor:
        if isinstance(model.get_parameter("linear.weight"), FakeTensor):
            held.append(bytearray(mib << 20))
        return loss(model, batch)

    return dataclasses.replace(wide(repeats=64), loss=crowd)


def slow_samples(seconds: float) -> Task:
    """Each sample takes `seconds`."""

    class Slow(Numbers):
        def __getitem__(self, index: int) -> Tensor:
            time.sleep(seconds)
            return super().__getitem__(index)

    return task_of(Wide(8), Slow())


def coupled() -> Task:
    """In-batch negatives: what a sample contributes depends on the others."""

    def contrast(model: nn.Module, batch: Tensor) -> Tensor:
        outputs = functional.normalize(model(batch), dim=1)
        return functional.cross_entropy(outputs @ outputs.T / 0.1, torch.arange(len(outputs)))

    return dataclasses.replace(task_of(nn.Linear(FEATURES, 8)), loss=contrast)


def hanging_in_its_check() -> Task:
    """Hangs with batches of three, with which a check begins and which no probe runs."""
    return _acting_at_three(lambda: time.sleep(600))


def dying_in_its_check() -> Task:
    return _acting_at_three(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _acting_at_three(act: Callable[[], None]) -> Task:
    def odd(model: nn.Module, batch: Tensor) -> Tensor:
        if len(batch) == 3:
            act()
        return loss(model, batch)

    return dataclasses.replace(task_of(nn.Linear(FEATURES, 8)), loss=odd)


def even(repeats: int = 64) -> Task:
    """Takes even batches only, as a mixup of a batch with itself reversed."""

    def mixed(model: nn.Module, batch: object) -> Tensor:
        assert size_of(batch) % 2 == 0, "this mixup wants an even batch"
        return loss(model, batch)

    return dataclasses.replace(wide(repeats=repeats), loss=mixed)


class Stateful(Wide):
    """Keeps what it computed for the step before, so that every batch has to be as large as that."""

    def __init__(self, repeats: int) -> None:
        super().__init__(repeats)
        self.kept: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        if self.kept is not None:
            outputs = outputs + 0 * self.kept.unsqueeze(1)
        self.kept = outputs.detach().mean(1)
        return outputs


def stateful(repeats: int = 64) -> Task:
    return task_of(Stateful(repeats), Numbers(1000))


class Baked(Wide):
    """The batch size is part of the model."""

    def __init__(self, repeats: int, size: int) -> None:
        super().__init__(repeats)
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).view(self.size, -1)


def baked(size: int = 32) -> Task:
    def flat(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        if len(batch) != size:
            raise RuntimeError(f"Expected hidden size (1, {len(batch)}, 128), got [1, {size}, 128]")
        return loss(model, batch)

    return dataclasses.replace(task_of(Baked(64, size), Numbers(1000)), loss=flat)


def normalised_and_hungry(mib: int = 150) -> Task:
    """BatchNorm, and so much memory a sample that eight do not fit into 800 MiB."""

    def hungry(model: nn.Module, batch: Tensor) -> Tensor:
        outputs: Tensor = model(batch)
        return outputs.repeat(1, mib * 128 // outputs.shape[1]).repeat(1, 256).square().mean() * 1e3

    return dataclasses.replace(task_of(nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8))), loss=hungry)
