"""Whether cutting a batch is collating fewer samples is tried without a trace."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from batchcal.runtime.row_slices import cuts_equal


def test_testing_a_collate_function_restores_the_random_state() -> None:
    def noisy(samples: list[Tensor]) -> Tensor:
        return torch.stack(samples) + float(np.random.rand()) + random.random() + torch.rand(1)

    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    expected = float(np.random.rand()), random.random(), float(torch.rand(1))
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    assert not cuts_equal([torch.zeros(2)] * 4, noisy)
    assert (float(np.random.rand()), random.random(), float(torch.rand(1))) == expected
