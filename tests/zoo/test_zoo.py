"""The tasks of the zoo are small and quick, and what the registry states of each is true (divisions: tests/test_undivided.py)."""

from __future__ import annotations

import ast
import statistics
import time
import zlib
from collections.abc import Sized
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.reference import Scalar, TaskReference
from batchcal.workload.task import Task
from tests.support.undivided import by_group
from tests.zoo.registry import TASKS, ZOO

ROOT = Path(__file__).resolve().parents[2]


def task_of(name: str, **arguments: Scalar) -> Task:
    torch.manual_seed(0)
    return load_task(TaskReference(spec=TASKS[name].spec, directory=str(ROOT), arguments=arguments), device="cpu")


def few_samples(name: str) -> dict[str, Scalar]:
    """Arguments of a task that keeps all its samples in memory."""
    return {"samples": 1000} if name == "copied-on-read" else {}


def elements(sample: object) -> int:
    """Numbers in the tensors of a sample, or of an object's attributes."""
    if isinstance(sample, Tensor):
        return sample.numel()
    if isinstance(sample, bytes):
        return len(zlib.decompress(sample))
    return sum(map(elements, sample if isinstance(sample, tuple) else vars(sample).values()))


def test_the_zoo_has_at_least_14_tasks_and_each_factory_is_registered() -> None:
    assert len(ZOO) >= 14
    factories = {
        f"tests.zoo.{path.stem}:{node.name}"
        for path in Path(__file__).parent.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or node) == "Task" and path.stem != "test_zoo"
    }
    assert factories == {entry.spec for entry in TASKS.values() if entry.spec.startswith("tests.")}


@pytest.mark.parametrize("name", TASKS)
def test_a_zoo_task_loads_fast_and_a_step_changes_its_parameters(name: str) -> None:
    task_of(name)  # imports the module, and what torch imports for the first optimizer
    began = time.thread_time()  # of the processor: other tests run beside
    task = task_of(name)
    assert time.thread_time() - began < 3  # 0.1 to 1.1 s
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    by_group(task, [2, 1] if not TASKS[name].batch_statistics else [2])
    changed = sum(not torch.equal(parameter, old) for parameter, old in zip(task.model.parameters(), before, strict=True))
    assert changed >= len(before) / 2
    assert all(bool(parameter.isfinite().all()) for parameter in task.model.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_the_registry_of_the_zoo_matches_its_tasks(name: str) -> None:
    entry, task = TASKS[name], task_of(name, **few_samples(name))
    assert any(isinstance(module, _BatchNorm) for module in task.model.modules()) == entry.batch_statistics
    assert isinstance(task.train_data, Sized)
    sizes = [elements(task.train_data[index]) for index in range(min(1000, len(task.train_data)))]
    assert (max(sizes) > 10 * statistics.median(sizes)) == entry.heavy_tailed


@pytest.mark.parametrize("name", TASKS)
def test_a_zoo_sample_is_deterministic(name: str) -> None:
    first, second = (task_of(name, **few_samples(name)).train_data[7] for _ in range(2))

    def tensors(sample: object) -> list[Tensor]:
        if isinstance(sample, bytes):
            return [torch.frombuffer(bytearray(sample), dtype=torch.uint8)]
        parts = [sample] if isinstance(sample, Tensor) else sample if isinstance(sample, tuple) else vars(sample).values()
        return [part for part in parts if isinstance(part, Tensor)]

    assert tensors(first)
    assert all(torch.equal(one, other) for one, other in zip(tensors(first), tensors(second), strict=True))
