"""The largest batch whose demand stays within the budget, in few probes and never by a probe that is expected to fail.

Three phases, after one probe for scale: `verify` the cap that the memory model predicts; `expand` while there is room, by at
most 4x a step; `bisect` only after a miss. Only a run that fits raises the lower bound, only running out of memory lowers the
upper one, and the answer is always a size that was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from batchcal.calibration.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.schema import LimitedBy, SearchPhase
from batchcal.measure.search.fit import fit

Verdict = Literal["fits", "too-big", "refused", "unknown"]
"""`refused`: the user's code did not take this size, but took smaller ones. `unknown`: nothing was learned about memory."""

EXPANSION: Final = 4
"""At most this much further than what was run: beyond, lines are not trusted (published lines extrapolated 17x and ran out)."""
PRECISION: Final = 0.03
"""A gap or a gain below this is not worth a probe."""
AIM: Final = 0.985
"""Share of the variable budget (budget - base) that is aimed at: noise must not turn a verification into a miss."""
SPREAD_LEFT_FREE: Final = 1.2
"""Of the allocator's run-to-run spread, besides. Half of it so that most later trainings at the answer stay within the budget and
not just every second one. The rest is for what later steps bring: a heap that fragments goes on growing, slower and slower
(glibc, four tasks: 3 % from the 4-8 steps of a probe to the 12th, 5 % from there to the 900th)."""
SCALE_SHARE: Final = 0.5
"""The scale probe runs at about half the expected cap."""
COARSE: Final = 0.5
"""A search that is content with an answer this far from the largest goes down by halves."""
MAX_MISSES: Final = 4


@dataclass(frozen=True)
class Ask:
    """A size to run."""

    batch: int
    phase: SearchPhase
    why: str
    predicted_bytes: int
    mapped_share: float = 0.0
    """Of what the batch is predicted to take: in blocks that are mapped one by one, which do not fragment."""


@dataclass(frozen=True)
class Bounds:
    """What holds a search. Batches in samples, memory in bytes of demand."""

    budget_bytes: int
    floor: int
    """The smallest batch worth an answer (multiple_of, else 1)."""
    ceiling: int
    """The dataset's size, --max-batch, ..."""
    ceiling_reason: LimitedBy
    multiple_of: int
    headroom: float
    over_budget_reason: LimitedBy = "memory"
    precision: float = PRECISION
    expansion: int = EXPANSION
    start: int | None = None
    """A size that is all but known to fit, to begin with. None: half of what the static curve expects."""


class CapacitySearch:
    """Ask for a size, tell what became of it, until there is nothing to ask."""

    def __init__(
        self,
        bounds: Bounds,
        shape: Sequence[ShapePoint],
        *,
        base_bytes: float,
        source: str,
        prior_ratio: float,
        spread: float,
    ) -> None:
        self._bounds = bounds
        self._shape = tuple(shape)
        self._base = base_bytes
        self._source = source
        self._prior = prior_ratio
        self._spread = spread
        self._points: dict[int, int] = {}
        self._over: dict[int, int] = {}
        self._misses = 0
        self._refused: int | None = None
        self._too_big: int | None = None
        self._accepted: set[int] = set()
        self.best: int | None = None
        """The largest batch that was run within the budget."""
        self._unknown = 0
        self._untold: int | None = None
        """A size whose run was inconclusive: it hung, or was killed from outside."""

    @property
    def model(self) -> MemoryModel:
        """The memory model as fitted so far. A run that ended over the budget is a point too."""
        return fit(
            self._shape,
            [*self._points.items(), *self._over.items()],
            base_bytes=self._base,
            source=self._source,
            prior_ratio=self._prior,
            spread=self._spread,
        )

    @property
    def upper(self) -> int:
        """No size from here on is worth a probe."""
        above = [self._bounds.ceiling + 1]
        above.extend(size for size in (self._too_big, self._refused) if size is not None)
        return min(above)

    @property
    def limited_by(self) -> LimitedBy:
        """What keeps the answer from being larger."""
        best = self.best or 0
        if best >= self._round(self._bounds.ceiling):
            return self._bounds.ceiling_reason
        if self._refused is not None and (self._too_big is None or self._refused < self._too_big):
            return "model"
        if self._unknown > 1 and self._too_big is None:
            return "time-limit"  # nearly always: what hangs ends by it
        return self._bounds.over_budget_reason

    def restrict(self, bounds: Bounds) -> None:
        """Search between other bounds, which explain why a size was refused: it bounds nothing any more."""
        self._bounds = bounds
        self._refused = None

    def accept(self, sizes: Iterable[int]) -> None:
        """Sizes that the task's code took in a trial: they are asked for before others below a refused size."""
        self._accepted.update(sizes)

    @property
    def undone(self) -> str:
        """What would still be asked if there were time. Empty: nothing."""
        ask = self.ask()
        return "" if ask is None else f"{ask.phase} {ask.batch}"

    @property
    def gave_up(self) -> str:
        """The range that stays unknown because its runs were inconclusive. Empty: there is none."""
        return f"above {self.best or 0} two runs were inconclusive" if self._unknown > 1 else ""

    def ask(self) -> Ask | None:
        """The next size, or None when the search is over."""
        if self._unknown > 1 or self._misses > MAX_MISSES:
            return None
        size, phase, why = self._next()
        if self._untold is not None:
            size = min(size, ((self.best or 0) + self._untold) // 2)
        size = self._round(size)
        if self.best is not None and (size <= self.best or size < self.best * (1 + self._precision)):
            return None
        if size >= self.upper or size < self._bounds.floor:
            return None
        return self._ask_for(size, phase, why)

    def part_of(self, ask: Ask, batch: int) -> Ask:
        """`ask`, cut to the `batch` that there is time for."""
        return self._ask_for(batch, ask.phase, f"as much of {ask.batch} as there is time for: {ask.why}")

    def tell(self, batch: int, verdict: Verdict, peak_bytes: int | None = None) -> None:
        """What became of `batch`. `peak_bytes` where it ran to its end, within the budget or above it."""
        match verdict:
            case "fits":
                self.best = max(batch, self.best or 0)
                if peak_bytes is not None:
                    self._points[batch] = peak_bytes
            case "too-big":
                self._misses += 1
                self._too_big = min(batch, self._too_big or batch)
                if peak_bytes is not None:
                    self._over[batch] = peak_bytes
            case "refused":
                self._refused = min(batch, self._refused or batch)
            case "unknown":
                self._unknown += 1
                self._untold = min(batch, self._untold or batch)

    def _ask_for(self, size: int, phase: SearchPhase, why: str) -> Ask:
        return Ask(size, phase, why, round(self._predict(size)), self.model.mapped_share(size))

    @property
    def _precision(self) -> float:
        """After a miss no finer than runs of the allocator differ: whoever draws again and again draws a lucky one."""
        return self._bounds.precision if self._too_big is None else max(self._bounds.precision, self._spread)

    @property
    def _step_down(self) -> float:
        """From a run over the budget while nothing has fitted: a tenth, or half where the answer need not be fine."""
        return 0.9 if self._bounds.precision < COARSE else 0.5

    def _next(self) -> tuple[int, SearchPhase, str]:
        bounds, model = self._bounds, self.model
        target = self._hoped(model, bounds.ceiling)
        if self._too_big is not None or self._refused is not None:
            return self._between(target)
        if self.best is None:
            if bounds.start is not None:
                return min(bounds.start, bounds.ceiling), "scale", "what training takes, evaluation should take"
            # Beyond the ceiling too: how easily everything fits decides whether a probe for scale is worth it.
            if self._hoped(model, bounds.ceiling * bounds.expansion) * SCALE_SHARE >= bounds.ceiling:
                return bounds.ceiling, "verify", "everything there is should fit easily"
            scale = max(self._hoped(model, int(target * SCALE_SHARE)), bounds.floor)
            return scale, "scale", "half of what the static curve expects to fit, to learn base and ratio"
        if target > self.best * bounds.expansion:
            why = f"the budget seems to hold {target}, but no step goes further than {bounds.expansion}x"
            return self._hoped(model, self.best * bounds.expansion), "expand", why
        peak = self._points.get(self.best)
        if len(self._points) > 1 and peak is not None:
            used = peak / bounds.budget_bytes
            side = "under" if used < bounds.headroom else "over"
            return (
                target,
                "expand",
                f"{used:.0%} of the budget used, {side} the {bounds.headroom:.0%} threshold; {target} should fit",
            )
        return target, "verify", "the cap that the memory model predicts"

    def _between(self, target: int) -> tuple[int, SearchPhase, str]:
        """After a miss: between what fits and what does not."""
        low, high = self.best or 0, self.upper
        accepted = [size for size in self._accepted if low * (1 + self._precision) <= size < high]
        if accepted and self._refused == high:
            return max(accepted), "bisect", f"the task's code took this size, and refused {high}"
        if low == 0:
            if self._misses >= MAX_MISSES:
                return self._bounds.floor, "bisect", f"{high} does not fit and nothing has yet: the smallest there is"
            known = self._over.get(high) is not None
            size = min(target, int(high * self._step_down)) if known and target > 0 else high // 2
            return max(size, self._bounds.floor), "bisect", f"{high} does not fit and nothing has yet"
        precision = self._precision
        if (high - low) / low <= precision:
            return low, "bisect", "close enough"
        if self._over.get(high) is not None:
            size = target if target > low * (1 + precision) else self._between_runs(low, high)
            size = min(size, int(high * (1 - 0.5 * precision * self._misses)))
            return size, "bisect", f"between {low}, which fits, and {high}, which ran over the budget"
        # The geometric middle where they are far apart, a little above it where they are near: a miss costs no more than a fit.
        middle = round((low * high) ** 0.5) if high > 1.5 * low else low + (high - low) * 3 // 5
        return (
            min(middle, max(target, low + (high - low) // 3)),
            "bisect",
            f"between {low}, which fits, and {high}, which does not",
        )

    def _between_runs(self, low: int, high: int) -> int:
        """The largest batch in [low, high) that should stay within the budget by what both were seen to take."""
        most = self._bounds.budget_bytes * AIM
        while high - low > 1:
            middle = (low + high) // 2
            if self._predict(middle) <= most:
                low = middle
            else:
                high = middle
        return low

    def _predict(self, size: int) -> float:
        """Demand in bytes at `size`; between a run that fitted and one that ran over, the model is led through both."""
        model, low, high = self.model, self.best, self._too_big
        if low is None or high is None or not low < size < high or low not in self._points or high not in self._over:
            return model.predict(size)
        off_low, off_high = self._points[low] - model.predict(low), self._over[high] - model.predict(high)
        return model.predict(size) + off_low + (off_high - off_low) * (size - low) / (high - low)

    def _hoped(self, model: MemoryModel, ceiling: int) -> int:
        """The largest batch up to `ceiling` that should stay within the budget."""
        cautious = model.model_copy(update={"ratio": model.ratio * (1 + SPREAD_LEFT_FREE * self._spread)})
        variable = max(0.0, self._bounds.budget_bytes - model.base_bytes)
        return cautious.largest_within(model.base_bytes + variable * AIM, ceiling=ceiling)

    def _round(self, size: int) -> int:
        """Down to a multiple of what was asked for, within the ceiling."""
        size = min(size, self._bounds.ceiling)
        return size - size % self._bounds.multiple_of
