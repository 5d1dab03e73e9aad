"""Samples of every form as digests."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from batchcal.workload.data.digest import digest_of


@dataclass
class Graph:
    nodes: torch.Tensor
    name: str


class Opaque:
    def __init__(self, number: int) -> None:
        self.number = number
        self.me = self


SAMPLES = [
    torch.arange(6),
    torch.arange(6).reshape(2, 3),
    torch.arange(6).float(),
    torch.arange(6, dtype=torch.bfloat16),
    torch.tensor(3.0),
    torch.zeros(0),
    torch.eye(3).to_sparse(),
    np.arange(6),
    np.arange(6).reshape(2, 3),
    "text",
    b"text",
    7,
    7.0,
    None,
    [1, 2],
    [2, 1],
    {"a": 1},
    {"a": 2},
    {"b", "a"},
    (torch.ones(2), {"label": 3}),
    Graph(torch.ones(2), "a"),
    Graph(torch.ones(2), "b"),
    Opaque(1),
    Opaque(2),
]


def test_different_samples_have_different_digests() -> None:
    assert len({digest_of(sample) for sample in SAMPLES}) == len(SAMPLES)


@pytest.mark.parametrize("place", range(len(SAMPLES)))
def test_a_pickled_copy_has_the_same_digest(place: int) -> None:
    sample = SAMPLES[place]
    copy: object = pickle.loads(pickle.dumps(sample))
    assert digest_of(copy) == digest_of(sample)


def test_a_view_has_the_digest_of_its_values() -> None:
    assert digest_of(torch.arange(6).reshape(2, 3).t()) == digest_of(torch.arange(6).reshape(2, 3).t().contiguous())
