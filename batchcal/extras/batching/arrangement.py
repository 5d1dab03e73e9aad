"""Arrangement of the samples of an epoch: windows of the shuffled order, sorted, packed, and distributed to optimizer steps."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Final, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from batchcal.core.values import Record
from batchcal.extras.batching.metadata import Metadata
from batchcal.extras.batching.packing import OVERHEAD, CostBudget, bucketed, greedy

Mode = Literal["greedy", "bucketed"]
NO_SAMPLE: Final = -1
"""Placeholder in a row of the last group if its samples are too few for all ranks."""
CHUNK: Final = 1 << 16
"""Number of samples sorted at a time. Temporary memory stays small, and in the cache."""
WINDOW_SAMPLES: Final = 1 << 16
"""Number of samples used to choose a window."""
WIDEST: Final = 64
"""Maximum number of groups of an automatically chosen window."""
PADDING: Final = 0.03
"""Share of padding in the padded cost at which a window is wide enough: about 30 micro-batches to choose from."""

_AtLeastOne = Annotated[int, Field(ge=1)]


class ArrangementSettings(Record):
    """Settings that, with order and costs, determine an arrangement. Stored in the state of a sampler."""

    effective_batch: _AtLeastOne
    budget: CostBudget
    mode: Mode = "bucketed"
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    window: _AtLeastOne = 1
    overhead: Annotated[float, Field(ge=0)] = OVERHEAD
    world_size: _AtLeastOne = 1
    drop_last: bool = False
    worst_first: bool = True


class _Piece(NamedTuple):
    """A micro-batch: consecutive rows."""

    start: int
    stop: int
    cost: float
    largest: float
    """Cost of its largest sample."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Rows of one sample for each rank, in training order, divided into micro-batches and groups."""

    rows: Tensor
    """(rows, ranks) int64, indices of samples."""
    sizes: array[int]
    """Number of rows of each micro-batch."""
    counts: array[int]
    """Number of micro-batches of each group."""

    def of_rank(self, rank: int, first_group: int = 0) -> Iterator[list[list[int]]]:
        """Yield the groups of one rank from number `first_group` on, each as the indices of its micro-batches."""
        column = self.rows[:, rank]
        place = sum(self.counts[:first_group])
        at = sum(self.sizes[:place])
        last = len(self.counts) - 1
        for number, count in enumerate(self.counts[first_group:], first_group):
            group: list[list[int]] = []
            for size in self.sizes[place : place + count]:
                group.append(column[at : at + size].tolist())
                at += size
            place += count
            # Only the last group may have an incomplete row.
            yield group if number != last else [[index for index in piece if index != NO_SAMPLE] for piece in group]

    def samples_before(self, group: int) -> Tensor:
        """Return the indices of the samples of all ranks in the groups before number `group`."""
        indices = self.rows[: sum(self.sizes[: sum(self.counts[:group])])].flatten()
        return indices[indices != NO_SAMPLE]

    def padding(self, costs: Tensor) -> float:
        """Return the share of padding in the padded cost, over all ranks."""
        occupied = self.rows != NO_SAMPLE
        own = torch.where(occupied, costs[self.rows.clamp(min=0)], 0.0)
        piece = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).unsqueeze(1).expand(self.rows.shape)
        largest, samples = (torch.zeros(len(self.sizes), self.rows.shape[1], dtype=torch.float64) for _ in range(2))
        largest.scatter_reduce_(0, piece, own, "amax")
        samples.scatter_add_(0, piece, occupied.double())
        padded = float((largest * samples).sum())
        return 1 - float(own.sum()) / padded if padded else 0.0


def arrange(
    order: Tensor, metadata: Metadata, settings: ArrangementSettings, generator: torch.Generator, *, worst_first: bool
) -> Arrangement:
    """Arrange the samples of `order` in groups of exactly the effective batch, except for the last group.

    A window is the samples of `settings.window` consecutive groups of `order`. They are sorted (see `ranked`), except in greedy
    mode. R neighbours form a row, one sample for each of R ranks. Rows are packed into micro-batches, which are shuffled and
    distributed to the groups of the window; a micro-batch at the end of a group is cut in two. The cost of a micro-batch is that
    on a rank with the largest sample of each row, so that all ranks have as many micro-batches, with as many samples.

    The last group: the remaining samples form rows, too. The first row may be incomplete. It shares a micro-batch with the next
    row, so that each rank has a sample in each micro-batch. If that exceeds the budget, the samples of that row (fewer than
    ranks) are left out. If fewer samples than ranks remain, they join the previous group, which is then the last.

    Args:
        order: (samples) int64, shuffled indices.
        generator: generator that shuffles micro-batches.
        worst_first: put the group with the costliest micro-batch first, then the group with the largest sample, then the group
            with the most samples in a micro-batch. The last group keeps its place. It must not contain a worse micro-batch, so it
            is packed under the cost of the costliest micro-batch of the others. If it would contain the largest sample of all,
            that sample changes places with the first sample of the order.
    """
    step, ranks = settings.effective_batch, settings.world_size
    complete, rest = divmod(len(order), step)
    if settings.drop_last:
        rest = 0
    elif 0 < rest < ranks and complete:
        complete, rest = complete - 1, rest + step
    if worst_first and complete:
        order = _with_largest_among(order, complete * step, metadata.costs)
    table = _Table(metadata, settings, generator)
    width = settings.window if settings.mode == "bucketed" else 1
    for first, windows, groups in _windows(complete, width, step):
        table.add(order[first * step : (first + windows * groups) * step].view(windows, -1), groups)
    if rest >= ranks:
        table.add_last(order[complete * step : complete * step + rest], table.worst if worst_first else 0.0)
    if worst_first:
        table.bring_worst_first(complete)
    return table.arrangement()


def smallest_window(metadata: Metadata, settings: ArrangementSettings) -> int:
    """Return the smallest window, in groups, with no more than `PADDING` of padding: a power of two up to `WIDEST`, tested on a
    part of the samples. If none is enough: the one with the least padding; a wider one must save half a percentage point."""
    if settings.mode == "greedy" or settings.budget.collation == "packed":
        return 1
    samples, step = len(metadata.costs), settings.effective_batch
    best, least, window = 1, 1.0, 1
    while least > PADDING and window <= WIDEST and (window == 1 or window * step <= samples):
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(samples, generator=generator)[: max(WINDOW_SAMPLES, window * step)]
        candidate = settings.model_copy(update={"window": window})
        padding = arrange(order, metadata, candidate, generator, worst_first=False).padding(metadata.costs)
        if padding < least - 0.005:
            best, least = window, padding
        window *= 2
    return best


def ranked(order: Tensor, metadata: Metadata, balance: float) -> Tensor:
    """Sort each window (row) of `order` by (1 - balance) x r + balance x d, rising.

    r: place of the sample by cost among the n samples of its window, (0.5 + number before it) / n. d: its place by cost among the
    samples of its own group in the window, likewise. At 0, neighbours have about the same cost, whatever their groups: the least
    padding. At 1, each stretch has the groups in the proportions of the window, with samples of about the same rank by cost.
    """
    costs, by_cost = metadata.costs[order].sort(dim=1, stable=True)
    order = order.gather(1, by_cost)
    del costs, by_cost
    if metadata.groups is None or not balance:
        return order
    count = order.shape[1]
    place = torch.arange(count, dtype=torch.int32).expand(order.shape)
    groups, by_group = metadata.groups[order].sort(dim=1, stable=True)
    changes = groups[:, 1:] != groups[:, :-1]
    edge = torch.ones(len(order), 1, dtype=torch.bool)
    first = torch.where(torch.cat([edge, changes], 1), place, 0).cummax(1).values
    last = torch.where(torch.cat([changes, edge], 1), place, count).flip(1).cummin(1).values.flip(1)
    own = (place - first + 0.5).double() / (last - first + 1)
    spread = torch.empty_like(own).scatter_(1, by_group, own)
    score = (1 - balance) * (place + 0.5).double() / count + balance * spread
    return order.gather(1, score.argsort(dim=1, stable=True))


def _windows(groups: int, width: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first group, number of windows, groups of each): one chunk at a time, then the narrower window at the end."""
    complete, rest = divmod(groups, width)
    windows = max(1, CHUNK // (width * step))
    for first in range(0, complete, windows):
        yield first * width, min(windows, complete - first), width
    if rest:
        yield complete * width, 1, rest


def _with_largest_among(order: Tensor, first: int, costs: Tensor) -> Tensor:
    """Return `order` with its largest sample among the first `first` samples."""
    place = int(costs[order].argmax())
    if place >= first:
        order = order.clone()
        order[[0, place]] = order[[place, 0]]
    return order


class _Table:
    """Builder of an arrangement."""

    def __init__(self, metadata: Metadata, settings: ArrangementSettings, generator: torch.Generator) -> None:
        self.groups: list[list[_Piece]] = []
        self._metadata, self._settings, self._generator = metadata, settings, generator
        self._by_cost = settings.mode == "bucketed" and (metadata.groups is None or not settings.balance)
        self._rows: list[Tensor] = []
        self._count = 0

    @property
    def worst(self) -> float:
        """Cost of the costliest micro-batch. 0: none yet."""
        return max((group[0].cost for group in self.groups), default=0.0)

    def add(self, windows: Tensor, groups: int) -> None:
        """Add windows, (windows, samples), of `groups` complete groups each."""
        rows = self._ordered(windows).view(len(windows), -1, self._settings.world_size)
        costs = self._metadata.costs[rows].amax(2)
        for number, window in enumerate(costs):
            self._pack(window.tolist(), groups, self._settings.budget, at=self._count + number * len(window))
        self._append(rows.flatten(0, 1))

    def add_last(self, samples: Tensor, most: float) -> None:
        """Add the last group, with at least one sample for each rank. No micro-batch costs more than `most`, unless that is 0."""
        ranks, budget = self._settings.world_size, self._settings.budget
        if most:
            budget = replace(budget, cost=most)
        short = -len(samples) % ranks
        empty = torch.full((short,), NO_SAMPLE)
        rows = torch.cat([empty, self._ordered(samples.unsqueeze(0)).squeeze(0)]).view(-1, ranks)
        costs = torch.where(rows == NO_SAMPLE, 0.0, self._metadata.costs[rows.clamp(min=0)]).amax(1).tolist()
        if short and not self._settings.budget.holds(costs[:2]):
            rows, costs, short = rows[1:], costs[1:], 0
        self._pack(costs, 1, budget, at=self._count, joined=2 if short else 1)
        self._append(rows)

    def bring_worst_first(self, complete: int) -> None:
        """Move the worst of the first `complete` groups to the beginning."""
        if complete < 2:
            return
        heads = {
            max(range(complete), key=lambda place: self.groups[place][0].cost): None,
            max(range(complete), key=lambda place: max(piece.largest for piece in self.groups[place])): None,
            max(range(complete), key=lambda place: max(piece.stop - piece.start for piece in self.groups[place])): None,
        }
        remaining = [group for place, group in enumerate(self.groups) if place not in heads]
        self.groups = [*(self.groups[place] for place in heads), *remaining]

    def arrangement(self) -> Arrangement:
        pieces = [piece for group in self.groups for piece in group]
        sizes = array("q", [piece.stop - piece.start for piece in pieces])
        counts = array("q", map(len, self.groups))
        if not pieces:
            return Arrangement(torch.empty(0, self._settings.world_size, dtype=torch.int64), sizes, counts)
        lengths = torch.tensor(sizes)
        shift = torch.tensor([piece.start for piece in pieces]) - lengths.cumsum(0) + lengths
        places = torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
        return Arrangement(torch.cat(self._rows)[places], sizes, counts)

    def _ordered(self, windows: Tensor) -> Tensor:
        return windows if self._settings.mode == "greedy" else ranked(windows, self._metadata, self._settings.balance)

    def _append(self, rows: Tensor) -> None:
        # Every second row is reversed, so that no rank always has the larger samples.
        turned = torch.arange(len(rows)).remainder(2).bool().unsqueeze(1)
        self._rows.append(torch.where(turned, rows.flip(1), rows) if rows.shape[1] > 1 else rows)
        self._count += len(rows)

    def _pack(self, costs: list[float], groups: int, budget: CostBudget, *, at: int, joined: int = 1) -> None:
        """Pack rows of these costs, from row number `at` on, into `groups` groups. The first `joined` rows stay together."""
        sizes = bucketed(costs, budget, overhead=self._settings.overhead) if self._by_cost else greedy(costs, budget)
        if sizes[0] < joined:
            sizes[:2] = [joined, sizes[1] - 1] if sizes[1] > 1 else [joined]
        stops = list(accumulate(sizes))
        pieces = list(zip([0, *stops], stops, strict=False))
        if groups > 1:
            mixed = torch.randperm(len(pieces), generator=self._generator).tolist()
            pieces = [pieces[place] for place in mixed]
        for group in _dealt(pieces, len(costs) // groups):
            micro_batches = [_piece(costs[start:stop], at + start, budget) for start, stop in group]
            micro_batches.sort(key=_by_falling_cost)
            self.groups.append(micro_batches)


def _dealt(pieces: list[tuple[int, int]], rows: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the pieces in order, in groups of exactly `rows` rows. A piece that does not fit is cut in two."""
    group: list[tuple[int, int]] = []
    room = rows
    for start, stop in pieces:
        begin = start
        while stop - begin >= room:
            yield [*group, (begin, begin + room)]
            begin, group, room = begin + room, [], rows
        if begin < stop:
            group.append((begin, stop))
            room -= stop - begin


def _piece(costs: list[float], start: int, budget: CostBudget) -> _Piece:
    largest = max(costs)
    cost = budget.loaded(len(costs), largest) if budget.collation == "padded" else budget.cost_of(costs)
    return _Piece(start, start + len(costs), cost, largest)


def _by_falling_cost(piece: _Piece) -> float:
    return -piece.cost
