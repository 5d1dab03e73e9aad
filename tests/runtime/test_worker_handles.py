"""The handles of workers' batches do not outlive the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import reductions
from torch.utils.data import Dataset

from batchcal.runtime.worker_handles import HANDLES
from batchcal.runtime.worker_processes import Loader

pytestmark = pytest.mark.child


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(index))


def test_shared_memory_handles_are_released_with_their_batches() -> None:
    kept: list[int] = []
    for batch in Loader(Numbers(), num_workers=1):
        kept.append(len(reductions.shared_cache))
        del batch
    assert len(kept) == 40
    assert max(kept) < 10  # those of batches that wait


def test_the_expected_handle_limit_equals_the_limit_of_torch() -> None:
    assert reductions.SharedCache().limit == HANDLES
