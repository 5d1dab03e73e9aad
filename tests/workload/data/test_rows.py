"""Rows of a collated batch: fewer than its samples where the collate function drops some, and nothing else is taken for rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from batchcal.workload.data.rows import rows_of
from batchcal.workload.step import batch_weight
from tests.support.tasks import a_task


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


@dataclass
class Fields:
    inputs: Tensor
    scale: float = 1.0


def images(count: int) -> list[Tensor]:
    return [torch.zeros(3, 8 + number, 8) for number in range(count)]


@pytest.mark.parametrize(
    ("batch", "samples", "rows"),
    [
        ([torch.zeros(8, 32), torch.zeros(8)], 8, 8),
        ([torch.zeros(5, 32), torch.zeros(5)], 8, 5),
        ([torch.zeros(1, 32), torch.zeros(1)], 8, 1),
        ((torch.zeros(0, 32), torch.zeros(0)), 8, 0),
        ({"ids": torch.zeros(5, 9), "mask": torch.zeros(5, 9), "longest": 9}, 8, 5),
        (Pair(torch.zeros(5, 2), torch.zeros(5)), 8, 5),
        (Fields(torch.zeros(5, 2)), 8, 5),
        (torch.zeros(5, 2), 8, 5),
        (None, 8, 0),
        # A list of samples, whose tensors begin with channels or lengths.
        (images(8), 8, 8),
        (images(5), 8, 5),
        ([images(5), [{"boxes": torch.zeros(number, 4)} for number in range(5)]], 8, 5),
        ([torch.zeros(length) for length in (3, 1, 2, 9, 4)], 8, 5),
        (["a", "b", "c"], 4, 3),
        # Two images to compare.
        ((torch.zeros(6, 3, 8, 8), torch.zeros(6, 3, 8, 8)), 8, 6),
        # Inputs and targets of one type and as many dimensions, of which fewer rows are left than the batch has fields.
        ((torch.zeros(1, 32), torch.zeros(1, 10)), 4, 1),
        ([torch.zeros(1), torch.zeros(1)], 4, 1),
        ((torch.zeros(0, 32), torch.zeros(0, 10)), 4, 0),
        ({"pair": (torch.zeros(1, 32), torch.zeros(1, 10))}, 4, 1),
        ([[torch.zeros(1, 9), torch.zeros(1, 7), torch.zeros(1, 8)], ["a", "b", "c"]], 4, 3),
        ([torch.zeros(1, 9), torch.zeros(1, 7), torch.zeros(1, 8)], 3, 3),
        # (time, batch): nothing was dropped.
        ([torch.zeros(5, 8), torch.zeros(5, 8)], 8, 8),
        (pack_sequence([torch.zeros(3), torch.zeros(2)]), 4, 2),
        # What shows nothing about rows: nodes and edges of graphs, one value for all, an object.
        ({"x": torch.zeros(90, 4), "edges": torch.zeros(2, 300), "y": torch.zeros(8)}, 8, 8),
        (torch.zeros(200, 4), 8, 8),
        # All tokens in a row with an offset for each sample: as many tensors as a batch may have samples.
        ((torch.zeros(40), torch.zeros(8), torch.zeros(8)), 8, 8),
        ((torch.zeros(40), torch.zeros(5), torch.zeros(5)), 5, 5),
        ({"tokens": torch.zeros(40), "lengths": torch.zeros(8), "labels": torch.zeros(8)}, 8, 8),
        (torch.tensor(1.0), 8, 8),
        (object(), 8, 8),
    ],
)
def test_the_row_count_of_a_batch_is_inferred_from_its_parts(batch: object, samples: int, rows: int) -> None:
    assert rows_of(batch, samples) == rows


def test_the_weight_is_the_row_count_with_a_custom_collate_function() -> None:
    batch = [torch.zeros(5, 8), torch.zeros(5)]
    assert batch_weight(replace(a_task(), collate_fn=list), batch, 6) == 5.0
    assert batch_weight(a_task(), batch, 6) == 6.0, "torch's own collate function drops nothing"
    assert batch_weight(replace(a_task(), collate_fn=list, weight_of=lambda batch: 2), batch, 6) == 2.0
    assert batch_weight(replace(a_task(), collate_fn=list, weight_of=lambda batch: 1 / 0), None, 6) == 0.0
