from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from batchcal.core.errors import UsageError
from batchcal.guard.children.report import headline
from batchcal.runtime.batches import MicroBatch, MicroBatchSampler
from batchcal.runtime.loader import DataLoaderConfig, make_eval_loader, make_loader
from tests.support.plans import a_plan


class Numbers(Dataset[int]):
    """0, 1, 2, ..."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    """0, 1, 2, ... and nobody knows how many."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


class NoLength(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


def seen(batch: object) -> list[int]:
    if isinstance(batch, MicroBatch):
        batch = batch.batch
    assert isinstance(batch, torch.Tensor)
    return [int(number) for number in batch]


def indices(sampler: MicroBatchSampler) -> list[list[int]]:
    return list(sampler)


@given(
    samples=st.integers(min_value=1, max_value=400),
    micro_batches=st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=6),
    shuffle=st.booleans(),
)
@settings(deadline=None)
def test_each_epoch_has_every_sample_once_in_the_sizes_of_the_plan(samples: int, micro_batches: list[int], shuffle: bool) -> None:
    sampler = MicroBatchSampler(samples, micro_batches, shuffle=shuffle, seed=3, drop_last=False)
    announced = [size for group in sampler.schedule() for size in group]
    assert len(sampler) == len(announced)
    batches = indices(sampler)
    assert [len(batch) for batch in batches] == announced
    assert sorted(index for batch in batches for index in batch) == list(range(samples))
    whole = samples // sum(micro_batches) * len(micro_batches)
    assert announced[:whole] == micro_batches * (samples // sum(micro_batches))
    rest = announced[whole:]
    assert all(0 < size <= max(micro_batches) for size in rest)
    assert not rest or max(rest) - min(rest) <= 1, "the last group is split evenly"


def test_an_uneven_plan_repeats_in_every_group_and_the_last_group_is_split_evenly() -> None:
    loader = make_loader(a_plan(25, 24, 24, 24), Numbers(97 * 2 + 40))
    assert [len(seen(batch)) for batch in loader] == [25, 24, 24, 24, 25, 24, 24, 24, 20, 20]


def test_the_last_group_can_be_left_out() -> None:
    loader = make_loader(a_plan(25, 24), Numbers(100), drop_last=True)
    assert [len(seen(batch)) for batch in loader] == [25, 24, 25, 24]


def test_each_epoch_has_another_order_and_the_same_seed_repeats_the_orders() -> None:
    first, second = (make_loader(a_plan(10), Numbers(50), seed=5) for _ in range(2))
    epochs = [[seen(batch) for batch in first] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [[seen(batch) for batch in second] for _ in range(3)]
    assert epochs[0] != [seen(batch) for batch in make_loader(a_plan(10), Numbers(50), seed=6)]


def test_a_loader_resumed_in_an_epoch_reads_the_rest_of_that_epoch() -> None:
    loader = make_loader(a_plan(4, 3), Numbers(30), seed=1)
    epochs = [[seen(batch) for batch in loader] for _ in range(4)]
    resumed = make_loader(a_plan(4, 3), Numbers(30), seed=1, epoch=2, first_sample=21)
    assert [seen(batch) for batch in resumed] == epochs[2][6:]
    assert [seen(batch) for batch in resumed] == epochs[3]


def test_shuffling_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make_loader(a_plan(4), Numbers(30)))
    assert torch.equal(before, torch.get_rng_state())


def test_an_unfinished_pass_does_not_change_the_samples_of_the_next_pass() -> None:
    loader = make_loader(a_plan(7), Numbers(30))
    next(iter(loader))
    assert sorted(index for batch in loader for index in seen(batch)) == list(range(30))


@pytest.mark.smoke
@pytest.mark.child
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_do_not_change_the_order_of_samples(persistent: bool) -> None:
    plain = make_loader(a_plan(6, 5), Numbers(40), seed=2)
    plan = a_plan(6, 5, num_workers=2, prefetch_factor=2, persistent_workers=persistent)
    worked = make_loader(plan, Numbers(40), seed=2)
    for _ in range(3):
        assert [seen(batch) for batch in worked] == [seen(batch) for batch in plain]
    del worked


def test_a_stream_is_batched_in_order_with_the_plans_sizes() -> None:
    loader = make_loader(a_plan(4, 3), Stream(16))
    for _ in range(2):
        batches = list(loader)
        assert [seen(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13], [14, 15]]
        assert [len(seen(batch)) for batch in batches] == [batch.samples for batch in batches if isinstance(batch, MicroBatch)]
    assert [len(seen(batch)) for batch in make_loader(a_plan(4), Stream(8))] == [4, 4], "no empty batch at the end"


@pytest.mark.child
def test_a_stream_is_read_once_with_any_number_of_workers() -> None:
    loader = make_loader(a_plan(4, 3, num_workers=3, prefetch_factor=2), Stream(16))
    assert [number for batch in loader for number in seen(batch)] == list(range(16))


def test_batches_use_the_collate_function_of_the_caller() -> None:
    def collate(samples: list[int]) -> torch.Tensor:
        return torch.tensor(samples) * 10

    assert seen(next(iter(make_loader(a_plan(3), Numbers(9), collate_fn=collate, shuffle=False)))) == [0, 10, 20]
    assert seen(next(iter(make_loader(a_plan(3), Stream(9), collate_fn=collate)))) == [0, 10, 20]


def test_the_evaluation_loader_reads_all_samples_in_order_in_its_own_batch_size() -> None:
    loader = make_eval_loader(a_plan(4, eval_batch=16), Numbers(40))
    assert [len(seen(batch)) for batch in loader] == [16, 16, 8]
    assert [number for batch in loader for number in seen(batch)] == list(range(40))


def test_a_dataset_without_samples_or_length_is_refused() -> None:
    with pytest.raises(UsageError, match="no batch can be made from Numbers"):
        make_loader(a_plan(4), Numbers(0))
    with pytest.raises(UsageError, match="no batch can be made from NoLength"):
        make_loader(a_plan(4), NoLength())


def test_drop_last_is_rejected_for_a_single_incomplete_group_and_for_streams() -> None:
    with pytest.raises(UsageError, match="no batch can be made") as caught:
        make_loader(a_plan(4, 4), Numbers(7), drop_last=True)
    assert "a group has 8" in caught.value.known
    with pytest.raises(UsageError, match="drop_last"):
        make_loader(a_plan(4), Stream(7), drop_last=True)


def test_a_loader_for_a_plan_with_several_ranks_is_rejected() -> None:
    with pytest.raises(UsageError, match="2 ranks"):
        make_loader(a_plan(4, effective_batch=8, world_size=2), Numbers(40))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_workers": -1}, "num_workers -1"),
        ({"prefetch_factor": 2}, "prefetch_factor is set, but there are no workers"),
        ({"multiprocessing_context": "fork"}, "multiprocessing_context is set, but there are no workers"),
        ({"persistent_workers": True}, "persistent_workers is set, but there are no workers"),
        ({"num_workers": 1, "prefetch_factor": 0}, "prefetch_factor 0 is below 1"),
        ({"num_workers": 1, "multiprocessing_context": "vfork"}, "no start method 'vfork'"),
    ],
)
def test_options_that_torch_rejects_late_are_rejected_early(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DataLoaderConfig.of(a_plan(4, **wrong))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="pinning is right where there is an accelerator")
def test_pinning_without_an_accelerator_is_refused_rather_than_ignored() -> None:
    with pytest.raises(UsageError, match="no accelerator"):
        DataLoaderConfig.of(a_plan(4, pin_memory=True))


KEPT = """
import tempfile, torch
from pathlib import Path
from batchcal.runtime.loader import DataLoaderConfig, build_loader

config = DataLoaderConfig(num_workers=2, prefetch_factor=2, persistent_workers=True)
loader = build_loader(config, torch.utils.data.TensorDataset(torch.zeros(64, 8)), (8,), None, shuffle=True)
print(sum(1 for _ in loader), sum(1 for _ in loader))
"""


@pytest.mark.child
def test_persistent_workers_leave_no_output_or_files_when_the_script_ends(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("8 8\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_last_group_has_the_sizes_of_the_plan() -> None:
    data = TensorDataset(torch.arange(52.0))
    loader = make_loader(a_plan(16, 16, last_group=(20,)), data)
    assert [len(batch[0]) for batch in loader] == [16, 16, 20]
    other = make_loader(a_plan(16, 16, last_group=(7,)), data)
    assert [len(batch[0]) for batch in other] == [16, 16, 10, 10], "a dataset of another length"


class Unreadable(Dataset[int]):
    """Sample 13 cannot be read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if index == 13:
            raise OSError("truncated")
        return index


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.child)])
def test_a_data_loading_error_names_the_sample(workers: int) -> None:
    plan = a_plan(num_workers=workers, prefetch_factor=2 if workers else None)
    where = ", in DataLoader worker 0" if workers else ""
    assert failure(make_loader(plan, Unreadable())) == f"OSError: truncated{where}, while reading sample 13 of Unreadable"


def failure(loader: DataLoader[object]) -> str:
    """How a pass fails. The error is not kept: its frames hold the pipes of workers."""
    try:
        for _ in loader:
            pass
    except OSError as error:
        text = headline(error)
    else:
        text = ""
    gc.collect()
    return text
