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
            known="each item of its dataset is a batch; batchcal builds the batches itself, in the sizes that it measures",
            try_=f"{name}=a dataset whose items are single samples",
        )
    others = "; ".join(_settings(loader))
    if chosen:
        kind, order = chosen
        return UserCodeError(
            f"{spec} returned a Task whose {name} is a DataLoader with {kind}",
            known=f"batchcal builds the loaders itself, in the batch sizes that it measures; {name}=loader.dataset "
            f"alone would lose which samples {type(_sampler(loader)).__name__} chooses, and their order",
            try_=f"{name}=an IterableDataset that reads in this order: def __iter__(self): return ({order}); "
            "def __len__(self): return the number of samples of an epoch"
            + ("; or batching = 'bucketed' below [train], for samples of similar size" if kind.startswith("a batch") else "")
            + (f". Its other settings: {others}" if others else ""),
        )
    return UserCodeError(
        f"{spec} returned a Task whose {name} is a DataLoader",
        known="batchcal builds the loaders itself, in the batch sizes that it measures",
        try_=f"{name}=loader.dataset" + (f"; {others}" if others else ""),
    )


def _sampler(loader: DataLoader[object]) -> object:
    return loader.sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler


def _choice(loader: DataLoader[object]) -> tuple[str, str] | None:
    """A phrase for the user's sampler, and an expression for the samples that it draws. None: torch's own order or shuffle."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    if type(loader.batch_sampler) is not BatchSampler:
        kind = type(loader.batch_sampler).__name__
        return f"a batch sampler of its own, {kind}", "dataset[index] for batch in batch_sampler for index in batch"
    sampler = loader.sampler
    if type(sampler) is SequentialSampler:
        return None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return None
    return f"a sampler of its own, {type(sampler).__name__}", "dataset[index] for index in sampler"


def _settings(loader: DataLoader[object]) -> Iterator[str]:
    """Further settings of the loader, each with its equivalent in batchcal."""
    if loader.collate_fn not in (default_collate, default_convert):
        yield "collate_fn=loader.collate_fn"
    if loader.worker_init_fn is not None:
        yield "what worker_init_fn does belongs into the dataset, on the first __getitem__ of a worker"
    if loader.drop_last:
        yield "drop_last is --drop-last of train"
    if loader.num_workers:
        yield "num_workers is --workers, else batchcal chooses"
    if loader.multiprocessing_context is not None:
        yield "multiprocessing_context is batchcal's choice"
