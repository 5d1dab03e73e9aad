"""A DataLoader in the place of a dataset: which of its settings batchcal takes from elsewhere, and which have no other place."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data._utils.collate import default_collate, default_convert

from batchcal.core.errors import UserCodeError


def refuse_loader(loader: DataLoader[object], name: str, spec: str) -> UserCodeError:
    """The error for a Task whose field `name` is `loader`."""
    chosen = _choice(loader)
    if loader.batch_sampler is None and not isinstance(loader.dataset, IterableDataset):
        return UserCodeError(
            f"{spec} returned a Task whose {name} is a DataLoader with batch_size=None",
            known="each item of its dataset is a batch; batchcal builds the batches itself, with the sizes that it measures",
            try_=f"{name}=a dataset whose items are single samples",
        )
    settings = "; ".join(_settings(loader))
    if chosen:
        sampler, order = chosen
        return UserCodeError(
            f"{spec} returned a Task whose {name} is a DataLoader with the {sampler}",
            known=f"batchcal builds the DataLoaders itself, with the batch sizes that it measures; {name}=loader.dataset "
            f"alone would ignore the samples that {type(_sampler(loader)).__name__} selects, and their order",
            try_=f"{name}=an IterableDataset in the same order, with def __iter__(self): return ({order}) and "
            "def __len__(self): return the number of samples per epoch"
            + ("; or batching = 'bucketed' below [train], for samples of similar size" if sampler.startswith("batch") else "")
            + (f"; the other settings: {settings}" if settings else ""),
        )
    return UserCodeError(
        f"{spec} returned a Task whose {name} is a DataLoader",
        known="batchcal builds the DataLoaders itself, with the batch sizes that it measures",
        try_=f"{name}=loader.dataset" + (f"; {settings}" if settings else ""),
    )


def _sampler(loader: DataLoader[object]) -> object:
    return loader.sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler


def _choice(loader: DataLoader[object]) -> tuple[str, str] | None:
    """A phrase for the user's sampler, and an expression for the samples that it draws. None: torch's own order or shuffle."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    if type(loader.batch_sampler) is not BatchSampler:
        kind = type(loader.batch_sampler).__name__
        return f"batch sampler {kind}", "dataset[index] for batch in batch_sampler for index in batch"
    sampler = loader.sampler
    if type(sampler) is SequentialSampler:
        return None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return None
    return f"sampler {type(sampler).__name__}", "dataset[index] for index in sampler"


def _settings(loader: DataLoader[object]) -> Iterator[str]:
    """Further settings of the loader, each with its equivalent in batchcal."""
    if loader.collate_fn not in (default_collate, default_convert):
        yield "collate_fn=loader.collate_fn"
    if loader.worker_init_fn is not None:
        yield "move the code of worker_init_fn into the dataset, to the first __getitem__ of each worker"
    if loader.drop_last:
        yield "batchcal train --drop-last instead of drop_last"
    if loader.num_workers:
        yield "--workers instead of num_workers (by default batchcal chooses it)"
    if loader.multiprocessing_context is not None:
        yield "no multiprocessing_context (batchcal chooses it)"
