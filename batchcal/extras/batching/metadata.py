"""Costs and groups of the samples, known before training."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.units import count_of
from batchcal.workload.data.fetch import sample_at
from batchcal.workload.data.sample_size import cost_of, listed_costs
from batchcal.workload.task import Task


@dataclass(frozen=True, eq=False)
class Metadata:
    """Cost and group of each sample, by index."""

    costs: Tensor
    """(samples) float64, 0 or more."""
    groups: Tensor | None
    """(samples) int32, number of the group, in order of appearance. None: all samples belong to one group."""

    @classmethod
    def of(cls, costs: Sequence[float] | Tensor, groups: Sequence[str] | None) -> Metadata:
        """Raises:
        UserCodeError: a cost is negative or not finite, a group is not a string, or the numbers of groups and costs differ.
        """
        numbers = torch.as_tensor(costs, dtype=torch.float64).flatten()
        wrong = (~(numbers.isfinite() & (numbers >= 0))).nonzero().flatten()
        if len(wrong):
            index = int(wrong[0])
            raise UserCodeError(
                f"sample {index} costs {float(numbers[index]):g}",
                known="the cost of a sample is a finite number, 0 or more, larger for samples that need more memory",
                try_="size_of=lambda sample: len(sample['text'])",
            )
        if groups is None:
            return cls(numbers, None)
        if len(groups) != len(numbers):
            raise UserCodeError(f"{count_of(len(groups), 'group')} for {count_of(len(numbers), 'sample')}")
        number_of: dict[str, int] = {}
        codes = array("i", (number_of.setdefault(_text(group, index), len(number_of)) for index, group in enumerate(groups)))
        return cls(numbers, torch.tensor(codes, dtype=torch.int32) if len(number_of) > 1 else None)

    def checksum(self) -> int:
        """Return a checksum. A different value means other costs or groups."""
        place = torch.arange(1, len(self.costs) + 1)
        total = (self.costs.view(torch.int64) * place).sum()
        if self.groups is not None:
            total = total + 31 * (self.groups * place).sum()
        return int(total)


def costs_of(task: Task, groups: Sequence[str] | None = None) -> tuple[Tensor, Sequence[str] | None]:
    """Return costs, (samples) float64, and groups of the training data of `task`, by its `size_of` and `group_of`.

    Each sample is loaded once if one of them is a function. None is loaded if `size_of` is a sequence and either `groups` are
    given or there is no `group_of`. Without `size_of`, the cost is the number of elements. Dataset errors propagate unchanged.

    Raises:
        UsageError: the data is a stream.
        UserCodeError: `size_of` gave something other than a finite number, or `group_of` something other than a string.
    """
    data, size_of = task.train_data, task.size_of
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise UsageError(
            f"{type(data).__name__} is not read by index, so its samples cannot be grouped by cost",
            try_="a dataset with __len__ and __getitem__",
        )
    samples = len(data)
    listed = None if size_of is None or callable(size_of) else listed_costs(size_of, samples)
    group_of = task.group_of if groups is None else None
    if listed is not None and group_of is None:
        return listed, groups
    costs, types = array("d"), list[str]()
    for index in range(samples):
        sample = sample_at(data, index)
        if listed is None:
            costs.append(cost_of(size_of, sample))
        if group_of is not None:
            types.append(_text(group_of(sample), index))
    return torch.tensor(costs, dtype=torch.float64) if listed is None else listed, groups if group_of is None else types


def _text(group: object, index: int) -> str:
    if isinstance(group, str):
        return group
    raise UserCodeError(
        f"group_of returned {repr(group)[:80]} for sample {index}",
        known="the group of a sample is a string: its task type",
        try_="group_of=lambda sample: sample['task']",
    )
