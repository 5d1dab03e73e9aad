"""Micro-batches by the cost of their samples: as many samples as fit into the memory, with as little padding as possible.

costs = [len(text) for text in texts]
sampler = MemoryAwareBatchSampler(costs, effective_batch=256, budget=CostBudget(plan.micro_batch * max(costs)))
loader = batchcal.make_loader(plan, dataset, collate_fn=pad, sampler=sampler)
for group in batchcal.accumulate(plan, loader): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from batchcal.core.errors import UsageError
from batchcal.core.units import count_of
from batchcal.core.values import Record
from batchcal.extras.batching.arrangement import Arrangement, ArrangementSettings, Mode, arrange, smallest_window
from batchcal.extras.batching.metadata import Metadata, costs_of
from batchcal.extras.batching.packing import OVERHEAD, CostBudget, greedy
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import GroupSampler, SampledIndices, generator_of
from batchcal.runtime.separate_reading import read_separately
from batchcal.workload.task import Task

# Format history
# 1 - first version
FORMAT: Final = 1


class Segment(Record):
    """Part of an epoch with the same settings."""

    settings: ArrangementSettings
    groups: int
    """Number of groups trained with these settings."""


class SamplerState(Record):
    """Position of a sampler. The trained samples follow from arranging the epoch again."""

    format: Literal[1] = FORMAT
    seed: int
    samples: int
    metadata: int
    """Checksum of costs and groups."""
    epoch: int
    segments: tuple[Segment, ...] = ()
    """Segments of the epoch, in order. Empty: the epoch has not begun."""


@dataclass(frozen=True, eq=False)
class _Pass:
    epoch: int
    before: tuple[Segment, ...]
    arrangement: Arrangement
    first_group: int


class MemoryAwareBatchSampler(GroupSampler):
    """Groups of exactly `effective_batch` samples (but for the last of an epoch), in micro-batches that keep within `budget`.

    Each sample occurs once per epoch. The order depends on `seed` and the epoch's number. The samples of `window` consecutive
    groups of that order are sorted by cost and packed into micro-batches, which are shuffled and distributed to the groups. With
    `window=1`, each optimizer step has the same samples as with plain shuffling (`MicroBatchSampler` with the same seed). Only
    their partition into micro-batches depends on cost: gradients equal those of random batches, up to rounding. Wider windows
    need less padding, and make the samples of a step more similar in cost.

    The first epoch begins with its costliest micro-batch. The micro-batch with the largest sample and the one with the most
    samples are in its first three groups, so that a shortage of memory shows at once. For this, groups change places, and one
    sample of the last group may change places with one of the first. Within a group, the costliest micro-batch comes first.

    Ranks: all ranks have the same number of groups, and in each group the same number of micro-batches, with the same number of
    samples and about the same cost. Together they have each sample once. If the samples of the last group do not divide evenly,
    some ranks have one sample fewer. If the budget or `max_samples` does not even allow two samples together, fewer samples than
    ranks are left out of the epoch. `effective_batch` is the total of all ranks: the weight of a micro-batch is its samples
    divided by those of its group on all ranks. `limit` must allow the same on all ranks.

    The position counts the batches that `batchcal.accumulate` delivered, whatever workers have read ahead.

    Args:
        costs: memory that each sample needs, by index, in any additive unit, such as tokens.
        budget: limit of a micro-batch, in units of cost. The capacity times the largest cost was run.
        groups: the task type of each sample, by index.
        mode: `greedy` takes the samples in shuffled order, with a window of one group; `bucketed` sorts them.
        balance: between memory fit (0) and diversity of groups within micro-batches (1). Samples are sorted by
            (1 - balance) x r + balance x d. r is the rank of the sample by cost in its window, as a fraction of 0 to 1. d is its
            rank by cost among the samples of its own group in the window, likewise. Without groups it has no effect.
        window: number of groups that are sorted together. None: the smallest with which no more than 3 % of the padded cost is
            padding (see `smallest_window`).
        overhead: fixed time of a micro-batch, as a share of a full one's. It determines the padding that one more is worth.
        epoch: number of the first pass.
        drop_last: leave out the last, smaller group of each epoch.
        worst_first: see above.

    Raises:
        UsageError: a single sample exceeds the budget, there are fewer samples than ranks, or invalid settings.
        UserCodeError: a cost is not a finite number of 0 or more, or the groups do not match.
    """

    def __init__(
        self,
        costs: Sequence[float] | Tensor,
        *,
        effective_batch: int,
        budget: CostBudget,
        groups: Sequence[str] | None = None,
        mode: Mode = "bucketed",
        balance: float = 0.5,
        window: int | None = None,
        overhead: float = OVERHEAD,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        worst_first: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(effective_batch=effective_batch, epoch=epoch)
        self._metadata = Metadata.of(costs, groups)
        self._names = groups
        self.samples = len(self._metadata.costs)
        self._seed = seed
        self._rank = rank
        _check(self.samples, effective_batch, drop_last, rank, world_size)
        _check_choices(mode, balance, window, overhead)
        _check_each_fits(self._metadata.costs, budget)
        settings = ArrangementSettings(
            effective_batch=effective_batch,
            budget=budget,
            mode=mode,
            balance=balance,
            window=window or 1,
            overhead=overhead,
            world_size=world_size,
            drop_last=drop_last,
            worst_first=worst_first,
        )
        if window is None:
            settings = settings.model_copy(update={"window": smallest_window(self._metadata, settings)})
        self.settings = settings
        """Settings in force, including the window."""
        self._checksum = self._metadata.checksum()
        self._loaded = SamplerState(seed=seed, samples=self.samples, metadata=self._checksum, epoch=epoch)
        self._ahead: _Pass | None = None
        self._under_way: _Pass | None = None
        self._delivered = 0
        """Number of groups delivered in the current pass."""

    @classmethod
    def of(
        cls,
        task: Task,
        plan: Plan,
        *,
        budget: CostBudget | None = None,
        groups: Sequence[str] | None = None,
        mode: Mode = "bucketed",
        balance: float = 0.5,
        window: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        rank: int = 0,
    ) -> MemoryAwareBatchSampler:
        """Return a sampler for the training data of `task`. `size_of` and `group_of` are evaluated once (see `costs_of`).

        Args:
            balance: with 0, groups are not needed and `group_of` is not called.
            budget: None: cost of the plan's micro-batch if all of its samples are as large as the largest.
            groups: replaces `group_of`, so that no sample needs to be loaded.

        Raises:
            UsageError: as in the constructor, or the data is a stream.
            UserCodeError: invalid result of `size_of` or `group_of`.
        """
        measured = task if balance else replace(task, group_of=None)
        costs, groups = read_separately(lambda: costs_of(measured, groups), workers=plan.num_workers)
        if budget is None:
            # If all costs are 0, only the number of samples is known.
            largest = float(costs.max()) if len(costs) else 0.0
            budget = CostBudget(plan.micro_batch * largest) if largest > 0 else CostBudget(1.0, max_samples=plan.micro_batch)
        return cls(
            costs,
            effective_batch=plan.effective_batch,
            budget=budget,
            groups=groups,
            mode=mode,
            balance=balance,
            window=window,
            seed=seed,
            epoch=epoch,
            drop_last=drop_last,
            rank=rank,
            world_size=plan.world_size,
        )

    def planned(self) -> Iterator[Sequence[Sequence[int]]]:
        current = self._next()
        self._ahead, self._under_way, self._delivered = None, current, 0
        return current.arrangement.of_rank(self._rank, current.first_group)

    def next_record(self) -> SampledIndices:
        record = super().next_record()
        self._delivered += record.ends_group
        return record

    def group_of(self, index: int) -> str:
        """Return the task type of a sample. Empty if there is only one."""
        return "" if self._names is None else self._names[index]

    def within(self, indices: Sequence[int], share: float) -> int:
        """Return how many of these samples, from the first on, fit together into `share` of the budget. At least 1."""
        costs: list[float] = self._metadata.costs[list(indices)].tolist()
        budget = self.settings.budget
        shrunk = replace(budget, cost=max(budget.cost * share, budget.cost_of(costs[:1])))
        return greedy(costs, shrunk)[0]

    def __len__(self) -> int:
        """Number of planned micro-batches of the next pass. The pass is arranged once."""
        current = self._next()
        return sum(current.arrangement.counts[current.first_group :])

    def padding(self) -> float:
        """Return the share of padding in the padded cost of the next pass, on all ranks. The pass is arranged once."""
        if self.settings.budget.collation == "packed":
            return 0.0
        return self._next().arrangement.padding(self._metadata.costs)

    def state_dict(self) -> dict[str, object]:
        """Return the position after the last group that was delivered completely, in plain values. The same on all ranks."""
        state = self._loaded if self._loaded.epoch == self.epoch else self._fresh(self.epoch)
        current = self._under_way
        if current is not None:
            groups = current.first_group + self._delivered
            ended = groups >= len(current.arrangement.counts)
            segments = (*current.before, Segment(settings=self.settings, groups=groups)) if groups else current.before
            state = self._fresh(self.epoch) if ended else self._fresh(current.epoch, segments)
        return state.model_dump(mode="json")

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue at the position of `state`: the next pass begins with the next group of the same arrangement.

        If settings have changed (budget, mode, effective batch, ranks, ...), the remaining samples of the epoch are arranged with
        the new ones; none is dropped, none is repeated. The first micro-batch is then the costliest of the remaining samples.

        Raises:
            UsageError: an invalid state, or a state in the middle of an epoch of other data or another seed.
        """
        try:
            loaded = SamplerState.model_validate(state)
        except ValidationError as error:
            first = error.errors()[0]
            location = ".".join(map(str, first["loc"])) or "state"
            raise UsageError("this is not a state of a MemoryAwareBatchSampler", known=f"{location}: {first['msg']}") from None
        if loaded.segments:
            expected = self._fresh(loaded.epoch)
            for name, label in (("seed", "seed"), ("samples", "number of samples"), ("metadata", "costs or groups")):
                stored, current = getattr(loaded, name), getattr(expected, name)
                if stored != current:
                    changed = f"other {label}" if name == "metadata" else f"another {label}"
                    raise UsageError(
                        f"the state is in the middle of epoch {loaded.epoch}, which had {changed}",
                        known="" if name == "metadata" else f"it was {stored} and is now {current}",
                        try_="use the earlier ones, or start the epoch again",
                    )
        self.epoch, self._loaded = loaded.epoch, self._fresh(loaded.epoch, loaded.segments)
        self._ahead = self._under_way = None

    def _fresh(self, epoch: int, segments: tuple[Segment, ...] = ()) -> SamplerState:
        return SamplerState(seed=self._seed, samples=self.samples, metadata=self._checksum, epoch=epoch, segments=segments)

    def _next(self) -> _Pass:
        """Return the pass that would begin now."""
        if self._ahead is None or self._ahead.epoch != self.epoch:
            self._ahead = self._arranged(self.epoch, self._loaded.segments if self._loaded.epoch == self.epoch else ())
        return self._ahead

    def _arranged(self, epoch: int, segments: tuple[Segment, ...]) -> _Pass:
        generator = generator_of(self._seed, epoch)
        # The first draw, as in plain shuffling.
        remaining = torch.randperm(self.samples, generator=generator)
        for number, segment in enumerate(segments):
            former = self._part(remaining, segment.settings, generator, epoch, number)
            if number == len(segments) - 1 and segment.settings == self.settings:
                return _Pass(epoch, segments[:-1], former, segment.groups)
            unseen = torch.ones(self.samples, dtype=torch.bool)
            unseen[former.samples_before(segment.groups)] = False
            remaining = remaining[unseen[remaining]]
        return _Pass(epoch, segments, self._part(remaining, self.settings, generator, epoch, len(segments)), 0)

    def _part(
        self, remaining: Tensor, settings: ArrangementSettings, generator: torch.Generator, epoch: int, number: int
    ) -> Arrangement:
        """Arrange the rest of an epoch. If `number` > 0, the settings are new and may run out of memory for the first time."""
        first = settings.worst_first and (epoch == 0 or number > 0)
        return arrange(remaining, self._metadata, settings, generator, worst_first=first)


def _check(samples: int, effective_batch: int, drop_last: bool, rank: int, world_size: int) -> None:
    if effective_batch < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"effective batch {effective_batch}, rank {rank} of {world_size} is not a valid combination")
    if effective_batch % world_size:
        raise UsageError(
            f"effective batch {effective_batch} cannot be shared evenly by {world_size} ranks",
            try_=f"effective_batch={max(round(effective_batch / world_size), 1) * world_size}",
        )
    if samples < world_size or (drop_last and samples < effective_batch):
        raise UsageError(
            f"{count_of(samples, 'sample')} cannot form a batch",
            known=f"a group needs {effective_batch}, and an incomplete group is dropped"
            if drop_last
            else f"each of the {world_size} ranks needs a sample",
        )


def _check_choices(mode: Mode, balance: float, window: int | None, overhead: float) -> None:
    if mode not in {"greedy", "bucketed"}:
        raise UsageError(f"mode {mode!r} is neither greedy nor bucketed", try_="mode='bucketed'")
    if not 0 <= balance <= 1:
        raise UsageError(f"balance {balance} is not between memory fit (0) and diversity (1)", try_="balance=0.5")
    if window is not None and window < 1:
        raise UsageError(f"a window of {window} groups is empty", try_="window=1")
    if not 0 <= overhead < float("inf"):
        raise UsageError(f"overhead {overhead} is not a share of the time of a micro-batch", try_=f"overhead={OVERHEAD}")


def _check_each_fits(costs: Tensor, budget: CostBudget) -> None:
    index = int(costs.argmax())
    cost = budget.loaded(1, float(costs[index]))
    if cost > budget.cost:
        over = int((budget.per_sample + costs > budget.cost).sum())
        raise UsageError(
            f"sample {index} costs {cost:g}, and the budget of a micro-batch is {budget.cost:g}",
            known=f"{over} of {count_of(len(costs), 'sample')} are above the budget",
            try_=f"a budget of {cost:g} or more, or shorter samples",
        )
