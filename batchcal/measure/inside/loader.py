"""Reading of batches in a measuring child."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader

from batchcal.measure.children.setting import ChildSetting
from batchcal.runtime.worker_deaths import raise_while_fetching
from batchcal.workload.data.worst_case import WorstCase


def same_batch(worst: WorstCase, setting: ChildSetting, indices: Sequence[int], times: int) -> Iterator[object]:
    """Return the batch of the samples at `indices`, `times` in a row, through DataLoader workers if there are any. These start
    now. A stream is read in this process."""
    if setting.workers == 0 or not worst.indexable:
        return (worst.batch_at(indices) for _ in range(times))
    raise_while_fetching()
    loader: DataLoader[object] = DataLoader(
        worst.dataset,
        batch_sampler=[list(indices)] * (times + setting.workers * setting.prefetch_factor),
        num_workers=setting.workers,
        prefetch_factor=setting.prefetch_factor,
        multiprocessing_context=setting.start,
        collate_fn=worst.collate,
        pin_memory=setting.device.startswith("cuda"),
    )
    return itertools.islice(iter(loader), times)
