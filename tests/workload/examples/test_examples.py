"""Each example is a real model that trains, and keeps the promises that tasks are measured by."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.reference import Scalar, TaskReference
from batchcal.workload.step import evaluate, finish_group, forward_backward, map_tensors, move, prepare
from batchcal.workload.task import Task

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
EXAMPLES = ("handwriting", "patchtst", "textpair", "multiimage")
SMALL: dict[str, dict[str, Scalar]] = {
    "handwriting": {"channels": 8},
    "patchtst": {"d_model": 16, "n_layers": 1, "steps": 1000},
    "textpair": {"d_model": 16, "n_layers": 1, "samples": 500},
    "multiimage": {"width": 2, "samples": 300},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other take ten times as long where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example(name: str, *, small: bool = True, **arguments: Scalar) -> Task:
    torch.manual_seed(0)
    given = {**SMALL[name], **arguments} if small else arguments
    spec = f"batchcal.workload.examples.{name}:task"
    task = load_task(TaskReference(spec=spec, directory=str(ROOT), arguments=given), device="cpu")
    prepare(task, CPU)
    return task


def length(data: object) -> int:
    assert isinstance(data, Sized)
    return len(data)


def trained(task: Task, batch: int, steps: int) -> list[float]:
    """The loss of each step."""
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(task.train_data, batch_size=batch, shuffle=True, collate_fn=task.collate_fn, generator=generator)
    losses = []
    for one in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
        losses.append(forward_backward(task, one, weight=1.0, scaler=None))
        finish_group(task, 1.0, scaler=None)
    return losses


def evaluated(task: Task) -> dict[str, float]:
    """The metrics over the data to evaluate with."""
    assert task.metrics is not None
    assert task.eval_data is not None
    task.model.eval()
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in DataLoader(task.eval_data, batch_size=100, collate_fn=task.collate_fn):
            for name, (value, weight) in task.metrics(task.model, batch).items():
                so_far = sums.setdefault(name, [0.0, 0.0])
                so_far[0] += value
                so_far[1] += weight
    return {name: value / weight for name, (value, weight) in sums.items()}


TRAINS: dict[str, tuple[dict[str, Scalar], int, int, Callable[[dict[str, float]], bool]]] = {
    "handwriting": ({"channels": 8, "learning_rate": 4e-3}, 64, 50, lambda found: found["accuracy"] > 0.7),
    "patchtst": ({"d_model": 16, "n_layers": 1, "steps": 2000}, 32, 60, lambda found: found["mse"] < 0.1),
    "textpair": ({"d_model": 32, "n_layers": 1, "longest": 40}, 64, 220, lambda found: found["accuracy"] > 0.65),
    "multiimage": ({"width": 4, "learning_rate": 4e-3}, 24, 160, lambda found: found["T1_accuracy"] > 0.5),
}
"""Arguments, batch, steps, and what must then be true of data never seen."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_training_an_example_reduces_the_loss_and_improves_its_metric(name: str) -> None:
    arguments, batch, steps, learned = TRAINS[name]
    task = example(name, small=False, **arguments)
    losses = trained(task, batch, steps)
    fifth = steps // 5
    assert sum(losses[-fifth:]) < 0.9 * sum(losses[:fifth])
    found = evaluated(task)
    assert learned(found), found


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_samples_are_determined_by_their_index(name: str) -> None:
    first, second = example(name).train_data, example(name).train_data
    collate = example(name).collate_fn or default_collate
    for index in (0, 5, 299):
        torch.testing.assert_close(flat(collate([first[index]])), flat(collate([second[index]])), rtol=0, atol=0)
    assert not torch.equal(torch.cat(flat(collate([first[0]]))), torch.cat(flat(collate([first[3]]))))


def flat(batch: object) -> list[Tensor]:
    """Every tensor in it, as one dimension of float64."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor.double().flatten())
        return tensor

    map_tensors(batch, keep)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_evaluation_and_metrics_run(name: str) -> None:
    task = example(name)
    collate = task.collate_fn or default_collate
    assert task.eval_data is not None
    batch = move(collate([task.eval_data[index] for index in range(4)]), CPU)
    assert isinstance(evaluate(task, batch), Tensor)
    assert evaluated(task)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_datasets_are_finite_and_pickle_small(name: str) -> None:
    task = example(name, small=False)
    for data in (task.train_data, task.eval_data):
        assert data is not None
        with pytest.raises(IndexError):
            data[length(data)]
        data[0]  # loads what it loads, which must not travel
        assert len(pickle.dumps(data)) < (1024 if name != "textpair" else 200_000)
    again, collate = pickle.loads(pickle.dumps(task.train_data)), task.collate_fn or default_collate
    torch.testing.assert_close(flat(collate([again[7]])), flat(collate([task.train_data[7]])), rtol=0, atol=0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_sizes_match_a_scan_without_loading_samples(name: str) -> None:
    task = example(name)
    assert isinstance(task.size_of, list)
    assert len(task.size_of) == length(task.train_data)
    worst = WorstCase.of(task, "train", limit_s=5, seed=0)
    by_scan = WorstCase(task.train_data, task.collate_fn, time_limit_s=5)
    assert worst.source == "size_of"
    assert task.size_of[by_scan.order[0]] == pytest.approx(max(task.size_of), rel=0.25)
