"""The shape of memory without the memory: curves against arithmetic."""

from __future__ import annotations

import itertools
import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.measure.inside.static import FakeTrace, line, profiled_curve, usable
from batchcal.workload.task import Task
from tests.measure.tasks import FEATURES, Wide, loss, refusing, task_of, untraceable, wide

KIB = 1024


def batch_of(size: int) -> object:
    return torch.ones(size, FEATURES)


def traced(task: Task, *sizes: int, limit_s: float = 60.0) -> FakeTrace:
    trace = FakeTrace(task, batch_of, limit_s=limit_s)
    trace.trace(sizes)
    return trace


def test_the_training_curve_matches_the_size_of_activations() -> None:
    shapes = traced(wide(512), 2, 8, 512).shapes()
    train, evaluation = shapes["train"], shapes["eval"]
    assert {2, 8, 512} <= {point.batch for point in train}
    # At least: what tanh keeps, what the product keeps, and what flows back; at most a few more of them.
    per_sample = (train[-1].bytes - train[1].bytes) / (train[-1].batch - 8)
    assert 3 * 512 * KIB <= per_sample <= 6 * 512 * KIB
    assert 0 < evaluation[-1].bytes < train[-1].bytes


def test_blocks_count_as_mapped_from_the_glibc_threshold() -> None:
    """512 KiB a sample: 64 samples make a block of 32 MiB."""
    mapped = {point.batch: point.mapped_bytes for point in traced(wide(512), 2, 8, 512).shapes()["train"]}
    assert mapped[63] == 0 < mapped[64]


def test_tracing_a_large_batch_allocates_no_memory() -> None:
    """100,000 samples of this model would take 200 GiB."""
    (point,) = [point for point in traced(wide(512), 8, 100_000).shapes()["train"] if point.batch == 100_000]
    assert point.bytes > 150 * KIB**3


def test_a_quadratic_loss_gives_a_curve_with_increasing_slope() -> None:
    def in_batch(model: nn.Module, batch: object) -> Tensor:
        outputs = model(batch)
        assert isinstance(outputs, Tensor)
        return (outputs @ outputs.T).square().mean()

    curve = traced(replace(task_of(Wide(1)), loss=in_batch), 64, 1024, 4096).shapes()["train"]
    slopes = [(high.bytes - low.bytes) / (high.batch - low.batch) for low, high in itertools.pairwise(curve)]
    assert slopes[1] > 2 * slopes[0]


def test_shared_parameters_stay_shared_after_tracing() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, FEATURES, bias=False)
            self.second = nn.Linear(FEATURES, FEATURES, bias=False)
            self.second.weight = self.first.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.as_tensor(self.second(self.first(inputs).relu()))

    model = Tied()
    assert traced(task_of(model), 256, 8192).shapes()["train"]
    assert model.first.weight is model.second.weight


def test_modules_without_bias_or_buffers_can_be_traced() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8, bias=False), nn.BatchNorm1d(8, affine=False, track_running_stats=False))
    model.register_buffer("none", None)
    assert traced(task_of(model), 4, 64).shapes()["train"]


def test_batch_norm_and_its_statistics_can_be_traced() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU())
    assert traced(task_of(model), 4, 64).shapes()["train"]


def test_half_precision_needs_less_memory() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1))
    half = traced(replace(task_of(deepcopy(model)), autocast=torch.bfloat16), 8, 100_000).shapes()["train"][-1].bytes
    full = traced(task_of(model), 8, 100_000).shapes()["train"][-1].bytes
    assert half < 0.7 * full


def test_evaluation_traces_the_eval_step_of_the_task() -> None:
    task = replace(wide(256), eval_step=lambda model, batch: model(batch).repeat(1, 8))
    shapes = traced(task, 8, 256).shapes()
    assert shapes["eval"][-1].bytes > 8 * 256 * 256 * KIB


def test_each_size_is_traced_once_and_the_curve_is_sorted() -> None:
    trace = traced(wide(64), 2, 32)
    before = dict(trace.peaks["train"])
    trace.trace([32, 16])
    assert before.items() <= trace.peaks["train"].items()
    assert [point.batch for point in trace.shapes()["train"]][:3] == [2, 16, 32]


def test_no_size_is_traced_after_the_time_is_up() -> None:
    assert traced(wide(64), 2, 8, limit_s=-1.0).shapes() == {}


def test_tracing_stops_after_a_slow_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcal.measure.inside.static.SIZE_LIMIT_S", 0.05)

    def slow(model: nn.Module, batch: object) -> Tensor:
        time.sleep(0.03)
        return loss(model, batch)

    assert list(traced(replace(wide(64), loss=slow), 2, 8, 32).peaks["train"]) == [2]


def test_tracing_stops_without_a_curve_if_the_first_size_is_too_slow() -> None:
    """A graph of thousands of operations: other sizes would not fit into the time."""

    def long(model: nn.Module, batch: object) -> Tensor:
        outputs = loss(model, batch)
        for _ in range(100_000):
            outputs = outputs + 1
        return outputs

    began = time.monotonic()
    trace = traced(replace(wide(64), loss=long), 2, 8, 32, limit_s=1.0)
    assert trace.shapes() == {}
    assert trace.peaks["train"] == {}
    assert time.monotonic() - began < 3


def test_a_model_that_reads_tensor_values_cannot_be_traced() -> None:
    with pytest.raises(DataDependentOutputException):
        traced(untraceable(), 2, 8)


def test_the_profiler_measures_the_same_slope_with_small_batches() -> None:
    static = traced(wide(512), 4, 16).shapes()["train"]
    profiled = profiled_curve(wide(512), batch_of, ("train", "eval"), ceiling=100)
    assert [point.batch for point in profiled["train"]] == [2, 4, 8, 16]
    slope = (profiled["train"][-1].bytes - profiled["train"][1].bytes) / 12
    assert slope == pytest.approx((static[1].bytes - static[0].bytes) / 12, rel=0.35)
    assert profiled["eval"][-1].bytes < profiled["train"][-1].bytes


@pytest.mark.parametrize(("ceiling", "sizes"), [(100, [2, 4, 8, 16]), (5, [2, 4]), (3, [1, 2])])
def test_no_batch_larger_than_the_dataset_is_profiled(ceiling: int, sizes: list[int]) -> None:
    curve = profiled_curve(wide(64), batch_of, ("train",), ceiling=ceiling)["train"]
    assert [point.batch for point in curve] == sizes


def test_a_single_sample_gives_a_line_through_the_origin() -> None:
    curve = profiled_curve(wide(64), batch_of, ("train",), ceiling=1)["train"]
    assert curve[1].bytes == 2 * curve[0].bytes > 64 * KIB


def test_a_batch_that_would_not_fit_is_not_profiled() -> None:
    ran: list[int] = []

    def counted(size: int) -> object:
        ran.append(size)
        return batch_of(size)

    curves = profiled_curve(wide(1024), counted, ("train",), ceiling=100, room_bytes=8 * KIB * KIB)
    assert ran == [2]
    assert usable(curves["train"])


def test_a_rejected_size_ends_the_profiled_curve() -> None:
    curves = profiled_curve(refusing(above=4), batch_of, ("train", "eval"), ceiling=100)
    assert [point.batch for point in curves["train"]] == [2, 4]


def test_a_task_that_rejects_the_smallest_size_raises_its_error() -> None:
    with pytest.raises(ValueError, match="no more than 1"):
        profiled_curve(refusing(above=1), batch_of, ("train",), ceiling=100)


def test_a_curve_that_does_not_grow_is_not_usable() -> None:
    assert not usable(())
    assert not usable((ShapePoint(batch=1, bytes=5.0),))
    assert not usable((ShapePoint(batch=1, bytes=5.0), ShapePoint(batch=2, bytes=5.0)))
    assert usable(line(10.0))
    model = nn.Linear(4, 4)
    still = Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_data=task_of(model).train_data,
        loss=lambda model, batch: next(model.parameters()).sum(),
    )
    assert profiled_curve(still, batch_of, ("train",), ceiling=100) == {}
