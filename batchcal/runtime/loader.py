"""The DataLoader that a plan describes."""

from __future__ import annotations

import atexit
import multiprocessing
import weakref
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.errors import UsageError
from batchcal.core.units import count_of
from batchcal.plan.division.last_group import smaller_group
from batchcal.plan.division.split import split_by
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import GroupSampler, MicroBatchSampler, StreamBatches, unchanged
from batchcal.runtime.worker_deaths import raise_while_fetching
from batchcal.runtime.worker_processes import Loader, leave_signals_to_the_parent
from batchcal.workload.data.fetch import tolerant
from batchcal.workload.data.streams import length_of


@dataclass(frozen=True, kw_only=True)
class DataLoaderConfig:
    """Consistent settings of a DataLoader. Settings that torch rejects late, or accepts and then hangs on, are rejected here.

    Raises:
        UsageError: they contradict each other or this platform.
    """

    num_workers: int = 0
    prefetch_factor: int | None = None
    """Batches that each worker reads ahead; None without workers."""
    pin_memory: bool = False
    persistent_workers: bool = False
    multiprocessing_context: str | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise UsageError(f"num_workers {self.num_workers} is below 0", try_="num_workers=0")
        if self.num_workers == 0:
            for name in ("prefetch_factor", "multiprocessing_context"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} is set, but there are no workers", try_=f"{name}=None, or num_workers=1")
            if self.persistent_workers:
                raise UsageError("persistent_workers is set, but there are no workers", try_="persistent_workers=False")
        # torch accepts 0 and fails when the first batch is requested.
        if self.prefetch_factor is not None and self.prefetch_factor < 1:
            raise UsageError(f"prefetch_factor {self.prefetch_factor} is below 1", try_="prefetch_factor=2")
        methods = multiprocessing.get_all_start_methods()
        if self.multiprocessing_context is not None and self.multiprocessing_context not in methods:
            raise UsageError(
                f"this system has no start method {self.multiprocessing_context!r}", known=f"valid values: {', '.join(methods)}"
            )
        # torch warns and continues without it. The run would then differ from the plan.
        if self.pin_memory and not torch.accelerator.is_available():
            raise UsageError("pin_memory is set, but there is no accelerator to copy to", try_="pin_memory=False")

    @classmethod
    def of(cls, plan: Plan) -> DataLoaderConfig:
        """Return the settings of `plan`."""
        return cls(
            num_workers=plan.num_workers,
            prefetch_factor=plan.prefetch_factor,
            pin_memory=plan.pin_memory,
            persistent_workers=plan.persistent_workers,
            multiprocessing_context=plan.multiprocessing_context,
        )


def make_loader(
    plan: Plan,
    dataset: Dataset[object],
    *,
    collate_fn: Callable[..., object] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    epoch: int = 0,
    first_sample: int = 0,
    sampler: GroupSampler | None = None,
) -> DataLoader[object]:
    """Return a loader whose batches are the plan's micro-batches. `batchcal.accumulate(plan, loader)` groups and weights them.

    Every sample is read once per epoch. The last group of an epoch is smaller, and split evenly. Each pass over the loader is the
    next epoch, with its own order.

    A dataset that can only be read in order (an IterableDataset) is batched in order, by one worker at most, because each further
    worker would read all of it again. An epoch ends after its length, if it has one. Its loader yields micro-batches with their
    number of samples, because the size of the last one is unknown in advance; `accumulate` separates them.

    Args:
        shuffle: in an order that depends on `seed` and the epoch's number. Without effect on an IterableDataset.
        drop_last: leave out the last, smaller group, for models that reject small batches (BatchNorm rejects one sample).
        epoch: the number of the first pass, for a run that continues an earlier one.
        first_sample: number of samples of that pass to skip: those of the groups that were already trained.
        sampler: replaces the default sampler. It decides which samples make a micro-batch, in which order, and where to begin. It
            must make groups of the plan's effective batch.

    Raises:
        UsageError: the plan is for several ranks, the dataset is empty, or too small for one complete group if the last is
            dropped, or settings contradict each other.
    """
    if plan.last_group_error and not drop_last and isinstance(dataset, Sized) and len(dataset) % plan.effective_batch:
        raise UsageError(
            f"the task fails with the last group of an epoch, {count_of(len(dataset) % plan.effective_batch, 'sample')}",
            known=plan.last_group_error,
            try_="drop_last=True to leave out that group",
        )
    if plan.world_size != 1:
        raise UsageError(
            f"the plan is for {plan.world_size} ranks, but this loader reads the complete dataset in one process",
            try_=f"batchcal plan --effective-batch {plan.effective_batch} --world-size 1",
        )
    if sampler is None and not drop_last and not isinstance(dataset, IterableDataset) and isinstance(dataset, Sized):
        remaining, error = last_of_pass(plan, len(dataset), first_sample)
        if error:
            raise UsageError(
                f"the task fails with the last group of this pass, {count_of(remaining, 'sample')}",
                known=error,
                try_="drop_last=True to leave out that group",
            )
    return build_loader(
        DataLoaderConfig.of(plan),
        dataset,
        plan.micro_batches,
        collate_fn,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        epoch=epoch,
        first_sample=first_sample,
        sampler=sampler,
        last_group=plan.last_group,
        rule=plan.size_rule,
        divide=lambda rest: smaller_group(plan, rest)[0],
    )


def last_of_pass(plan: Plan, samples: int, first_sample: int) -> tuple[int, str]:
    """Return the size of the last, smaller group of a pass over `samples` from `first_sample` on, and why the task rejects it."""
    remaining = (samples - first_sample) % plan.effective_batch
    return remaining, smaller_group(plan, remaining)[1] if remaining else ""


def make_eval_loader(
    plan: Plan, dataset: Dataset[object], *, collate_fn: Callable[..., object] | None = None, drop_last: bool = False
) -> DataLoader[object]:
    """Return a loader over all of `dataset` in order, in batches of the plan's `eval_batch`.

    Args:
        drop_last: leave out the last, smaller batch if the task does not accept it.

    Raises:
        UsageError: the dataset is empty or has no length, the task does not accept its last batch, or settings contradict
            each other.
    """
    samples = None if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) else len(dataset)
    rejected = rejected_samples(plan, samples)
    if rejected and not drop_last and plan.size_rule is not None:
        raise UsageError(
            f"the evaluation ends with a batch of {count_of(rejected, 'sample')}, which the task does not accept",
            known=f"the task {plan.size_rule.text}",
            try_="drop_last=True",
        )
    last = 0 if samples is None else samples % plan.eval_batch
    return build_loader(
        DataLoaderConfig.of(plan),
        dataset,
        (plan.eval_batch,),
        collate_fn,
        shuffle=False,
        drop_last=rejected > 0,
        rule=plan.size_rule,
        last_group=() if plan.size_rule is None or not last or rejected else split_by(plan.size_rule, last, plan.eval_batch),
    )


def rejected_samples(plan: Plan, samples: int | None) -> int:
    """Size of the last, smaller batch of an evaluation over `samples` if the task does not accept it; else 0."""
    rule, last = plan.size_rule, 0 if samples is None else samples % plan.eval_batch
    return last if rule is not None and last and (rule.one_size or not split_by(rule, last, plan.eval_batch)) else 0


def build_loader(
    settings: DataLoaderConfig,
    dataset: Dataset[object],
    micro_batches: tuple[int, ...],
    collate_fn: Callable[..., object] | None,
    *,
    shuffle: bool,
    seed: int = 0,
    drop_last: bool = False,
    epoch: int = 0,
    first_sample: int = 0,
    sampler: GroupSampler | None = None,
    last_group: tuple[int, ...] = (),
    rule: SizeRule | None = None,
    divide: Callable[[int], Sequence[int]] | None = None,
) -> DataLoader[object]:
    """Make the loader of `make_loader` and `make_eval_loader`, also for settings that no plan has yet. See `make_loader`."""
    if settings.num_workers > 0:
        raise_while_fetching()
    collate_fn = tolerant(collate_fn)
    # The loader's own generator seeds its workers: a pass then neither depends on the global generator nor advances it.
    generator = torch.Generator().manual_seed(seed)
    if isinstance(dataset, IterableDataset):
        if drop_last:
            raise UsageError(
                "drop_last needs a dataset with a length",
                known="the length of a stream is unknown before it ends",
                try_="drop_last=False",
            )
        if sampler is not None:
            raise UsageError(f"{type(sampler).__name__} needs a dataset that is read by index, but this dataset is a stream")
        stream = Loader(
            StreamBatches(
                dataset,
                micro_batches,
                collate_fn or default_collate,
                first_sample=first_sample,
                samples=length_of(dataset),
                rule=rule,
            ),
            batch_size=None,
            collate_fn=unchanged,
            generator=generator,
            num_workers=min(settings.num_workers, 1),
            prefetch_factor=settings.prefetch_factor,
            pin_memory=settings.pin_memory,
            persistent_workers=settings.persistent_workers,
            multiprocessing_context=settings.multiprocessing_context,
            worker_init_fn=leave_signals_to_the_parent,
        )
        return _ending_with_us(stream)
    samples = len(dataset) if isinstance(dataset, Sized) else 0
    group = sum(micro_batches)
    if samples == 0 or (drop_last and samples < group):
        raise UsageError(
            f"no batch can be made from {type(dataset).__name__}",
            known=f"it has {count_of(samples, 'sample')}"
            + (f"; a group has {group}, and smaller groups are left out" if samples else ""),
            try_="drop_last=False" if samples else "a dataset with __len__ and __getitem__",
        )
    if sampler is None:
        sampler = MicroBatchSampler(
            samples,
            micro_batches,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            epoch=epoch,
            first_sample=first_sample,
            last_group=last_group,
            divide=divide,
        )
    elif sampler.effective_batch != group:
        raise UsageError(
            f"the sampler makes groups of {count_of(sampler.effective_batch, 'sample')}, but the plan needs groups of {group}"
        )
    loader = Loader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate_fn,
        generator=generator,
        num_workers=settings.num_workers,
        prefetch_factor=settings.prefetch_factor,
        pin_memory=settings.pin_memory,
        persistent_workers=settings.persistent_workers,
        multiprocessing_context=settings.multiprocessing_context,
        worker_init_fn=leave_signals_to_the_parent,
    )
    return _ending_with_us(loader)


def _ending_with_us(loader: DataLoader[object]) -> DataLoader[object]:
    """Let workers that are kept over epochs end cleanly when the interpreter ends.

    They end when their iterator is deleted. Without this, multiprocessing has already terminated them by then, and each leaves a
    folder with a socket in the temporary directory. Functions that are registered later run earlier.
    """
    if loader.persistent_workers:
        reference = weakref.ref(loader)

        def delete_iterator() -> None:
            alive = reference()
            if alive is not None:
                alive._iterator = None

        atexit.register(delete_iterator)
    return loader
