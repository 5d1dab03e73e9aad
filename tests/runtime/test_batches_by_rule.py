"""Batches of a task that does not take every size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.errors import UsageError
from batchcal.plan.division.group_limits import GroupLimits
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import MicroBatchSampler, StreamBatches
from batchcal.runtime.loader import make_eval_loader, make_loader
from tests.support.calibrations import a_calibration
from tests.support.plans import a_plan

EVEN = SizeRule(multiple_of=2, least=2)
STATEFUL = SizeRule(one_size=True)


class Stream(IterableDataset[object]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[object]:
        return iter(range(self.samples))


def plan_by(rule: SizeRule, *, samples: int = 1000) -> Plan:
    calibration = a_calibration()
    assert calibration.facts is not None
    facts = calibration.facts.model_copy(update={"train_samples": samples})
    plan = make_plan(calibration.model_copy(update={"size_rule": rule, "facts": facts}), effective_batch=100)
    return plan.model_copy(update={"eval_batch": 50, "num_workers": 0, "prefetch_factor": None, "persistent_workers": False,
                                   "multiprocessing_context": None})  # fmt: skip


def numbers(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(samples))


@given(limits=st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_a_limited_micro_batch_is_split_into_sizes_that_the_task_accepts(limits: list[int]) -> None:
    sampler = MicroBatchSampler(400, (50, 50), shuffle=False, seed=0, drop_last=False)
    sampler.rule = EVEN
    left = list(limits)
    sampler.limit = lambda indices: left.pop() if left else len(indices)
    sizes = [len(indices) for indices in sampler]
    assert sum(sizes) == 400
    assert all(size % 2 == 0 for size in sizes)


def test_micro_batches_of_one_size_are_not_shortened() -> None:
    sampler = MicroBatchSampler(400, (50, 50), shuffle=False, seed=0, drop_last=False)
    sampler.rule, sampler.limit = STATEFUL, lambda indices: 7
    assert {len(indices) for indices in sampler} == {50}


def test_the_last_group_of_a_loader_has_sizes_that_the_task_accepts() -> None:
    loader = make_loader(plan_by(EVEN, samples=1054), numbers(1054), shuffle=False)
    sizes = [len(batch[0]) for batch in loader]
    assert sum(sizes) == 1054
    assert all(size % 2 == 0 for size in sizes)


def test_a_loader_rejects_a_last_group_that_the_task_does_not_accept() -> None:
    plan = plan_by(EVEN, samples=1001)
    with pytest.raises(UsageError, match="last group") as raised:
        make_loader(plan, numbers(1001))
    assert "drop_last=True" in raised.value.try_
    assert sum(len(batch[0]) for batch in make_loader(plan, numbers(1001), drop_last=True)) == 1000


def test_an_evaluation_loader_rejects_a_last_batch_that_the_task_does_not_accept() -> None:
    plan = plan_by(EVEN)
    with pytest.raises(UsageError) as raised:
        make_eval_loader(plan, numbers(101))
    assert "even batches" in raised.value.known
    assert [len(batch[0]) for batch in make_eval_loader(plan, numbers(101), drop_last=True)] == [50, 50]
    assert [len(batch[0]) for batch in make_eval_loader(plan, numbers(102))] == [50, 50, 2]


@pytest.mark.parametrize(("rule", "sizes"), [(EVEN, [8, 8, 6]), (STATEFUL, [8, 8]), (None, [8, 8, 7])])
def test_samples_of_a_stream_beyond_the_last_valid_size_are_dropped(rule: SizeRule | None, sizes: list[int]) -> None:
    batches = StreamBatches(Stream(23), (8,), lambda samples: samples, rule=rule)
    assert [batch.samples for batch in batches] == sizes


@pytest.mark.parametrize(
    ("plan", "last"),
    [
        (a_plan(16, 16, size_rule=EVEN), [12, 10]),
        (a_plan(16, 16, group_limits=GroupLimits(least=16, most=32)), [22]),
        (a_plan(16, 16), [11, 11]),
        (a_plan(32, undivided="in-batch negatives"), [22]),
    ],
    ids=["even", "floor", "free", "undivided"],
)
def test_the_last_group_of_a_resumed_epoch_follows_the_same_rules_as_all_groups(plan: Plan, last: list[int]) -> None:
    sizes = [len(batch[0]) for batch in make_loader(plan, numbers(96), first_sample=10)]
    assert sum(sizes) == 86
    assert sizes[-len(last) :] == last


@pytest.mark.parametrize(
    ("plan", "first", "cause"),
    [
        (a_plan(16, 16, size_rule=EVEN), 11, "only even batches"),
        (a_plan(16, size_rule=STATEFUL), 12, "only one batch size"),
        (
            a_plan(32, group_limits=GroupLimits(least=16, single_sample_error="Expected more than 1 value")),
            31,
            "more than 1 value",
        ),
    ],
    ids=["even", "stateful", "single"],
)
def test_a_last_group_of_a_resumed_epoch_that_cannot_be_trained_is_refused(plan: Plan, first: int, cause: str) -> None:
    with pytest.raises(UsageError, match="last group of this pass") as refused:
        make_loader(plan, numbers(96), first_sample=first)
    assert cause in refused.value.known
    assert make_loader(plan, numbers(96), first_sample=first, drop_last=True)
