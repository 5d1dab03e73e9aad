"""One law: however a batch is divided, and by whichever code, the step is that of the undivided batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.reference import Scalar, TaskReference
from batchcal.workload.task import Task
from tests.support.tasks import a_task, unpacked
from tests.support.undivided import COUNT_SAMPLES, DIVISIONS, by_step, in_double, parameters
from tests.zoo.registry import TASKS, ZOO

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ("handwriting", "textpair", "multiimage")
ARGUMENTS: dict[str, dict[str, Scalar]] = {
    "wide-mlp": {"width": 200},
    "copied-on-read": {"samples": 100},
    "u-net": {"width": 4},
    "patchtst": {"d_model": 16, "n_layers": 1, "steps": 1000},
    "handwriting": {"channels": 8},
    "textpair": {"d_model": 16, "n_layers": 1, "samples": 500},
    "multiimage": {"width": 2, "samples": 300},
}
DIVISIBLE = [*(name for name, entry in TASKS.items() if entry.mean_over_weight and not entry.batch_statistics), *EXAMPLES]


@pytest.fixture(autouse=True)
def double_precision_on_one_thread() -> Iterator[None]:
    """Two threads that wait for each other take ten times as long where other tests run beside."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def task_of(name: str) -> Task:
    torch.manual_seed(0)
    spec = TASKS[name].spec if name in TASKS else f"batchcal.workload.examples.{name}:task"
    return in_double(load_task(TaskReference(spec=spec, directory=str(ROOT), arguments=ARGUMENTS.get(name, {})), device="cpu"))


@functools.cache
def undivided(name: str) -> tuple[Tensor, Tensor]:
    """Parameters before and after one step over the undivided batch."""
    task = task_of(name)
    before = parameters(task)
    by_step(task, [12])
    return before, parameters(task)


TAKE_WEIGHT_OF = [division for division in DIVISIONS if division not in COUNT_SAMPLES]
WEIGHED = ("lstm", "gru", "sequence-to-sequence", "documents", "compressed")
"""Tasks with a `weight_of`."""


@pytest.mark.parametrize(
    ("name", "division"),
    [(name, division) for name in DIVISIBLE for division in (TAKE_WEIGHT_OF if name in WEIGHED else DIVISIONS)],
)
def test_a_divided_batch_makes_the_same_step_as_the_undivided_batch(name: str, division: str) -> None:
    task = task_of(name)
    before, after = undivided(name)
    assert not torch.equal(before, after)
    DIVISIONS[division](task, [6, 5, 1])
    torch.testing.assert_close(parameters(task), after, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if not entry.mean_over_weight or entry.batch_statistics])
def test_the_step_of_a_task_marked_as_not_divisible_changes_when_divided(name: str) -> None:
    task = task_of(name)
    before, after = undivided(name)
    by_step(task, [6, 5, 1] if ZOO[name].mean_over_weight is False else [6, 6])
    error = (parameters(task) - after).norm() / (after - before).norm()
    assert error > 0.01


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.batch_statistics])
def test_only_batch_statistics_make_a_divided_step_differ(name: str) -> None:
    whole, divided = task_of(name), task_of(name)
    for task, sizes in ((whole, [12]), (divided, [6, 5, 1])):
        task.model.eval()
        by_step(task, sizes)
    torch.testing.assert_close(parameters(divided), parameters(whole), rtol=1e-9, atol=1e-11)


def masked_mean(model: nn.Module, batch: object) -> Tensor:
    """The mean over the points that are not of class 0; 0 where there is none."""
    inputs, labels = unpacked(batch)
    each, counts = functional.cross_entropy(model(inputs), labels, reduction="none"), (labels != 0).double()
    return (each * counts).sum() / counts.sum().clamp_min(1)


def counted(batch: object) -> float:
    return float((unpacked(batch)[1] != 0).sum())


@pytest.mark.parametrize("sizes", [[24], [12, 12], [1] * 24, [7, 8, 9], [23, 1], [4, 20]])
@pytest.mark.parametrize("division", TAKE_WEIGHT_OF)
@pytest.mark.parametrize("masked", [False, True], ids=["samples", "masked"])
def test_no_division_changes_the_step(sizes: Sequence[int], division: str, masked: bool) -> None:
    """With a mask, some micro-batches weigh nothing."""

    def step(division: str, sizes: Sequence[int]) -> Tensor:
        task = a_task()
        if masked:
            object.__setattr__(task, "loss", masked_mean)
            object.__setattr__(task, "weight_of", counted)
        task = in_double(task)
        DIVISIONS[division](task, sizes)
        return parameters(task)

    torch.testing.assert_close(step(division, sizes), step("step", [24]), rtol=1e-9, atol=1e-11)
