"""Tasks that take more memory than there is, in every way there is, and some that only seem to."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.workload.task import Task
from tests.faults.tasks_plain import FEATURES, MIB, WARM_UP, Numbers, Wide, mean_loss, plain, size_of, task_of


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
