"""Fetching in a DataLoader with errors that name their sample: torch's own fetcher does not report the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.utils.data import Dataset, _utils, dataloader

from batchcal.workload.data.fetch import collated, samples_at


class SampleFetcher:
    """Replacement for torch's own fetcher of batches. It reads and collates in the same way."""

    def __init__(
        self, dataset: Dataset[object], auto_collation: bool, collate_fn: Callable[[object], object], drop_last: bool
    ) -> None:
        self.dataset = dataset
        self.auto_collation = auto_collation
        self.collate_fn = collate_fn
        self.drop_last = drop_last

    def fetch(self, possibly_batched_index: Sequence[int]) -> object:
        samples = samples_at(self.dataset, possibly_batched_index)
        return collated(samples, self.collate_fn, self.dataset, possibly_batched_index)


def name_samples(iterator: dataloader._BaseDataLoaderIter) -> None:
    """Let errors of `iterator` name samples, if it fetches in this process."""
    fetcher: object = vars(iterator).get("_dataset_fetcher")
    if isinstance(fetcher, _utils.fetch._MapDatasetFetcher):
        vars(iterator)["_dataset_fetcher"] = SampleFetcher(
            fetcher.dataset, fetcher.auto_collation, fetcher.collate_fn, fetcher.drop_last
        )


def name_samples_in_worker() -> None:
    """Let errors of this process name samples. It is a worker that makes its fetcher next."""
    vars(_utils.fetch)["_MapDatasetFetcher"] = SampleFetcher
