"""Search for the largest batch that stays within the budget, in few probes and never by a probe that is expected to fail.

Three phases follow one probe for scale: `verify` the cap that the memory model predicts; `expand` while there is room, by at most
4x per step; `bisect` only after a miss. Only a run that fits raises the lower bound, only running out of memory lowers the upper
one, and the answer is always a size that was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.schema import LimitedBy, SearchPhase
from batchcal.measure.search.fit import fit

Verdict = Literal["fits", "too-big", "refused", "unknown"]
"""`refused`: the user's code did not accept this size, but accepted smaller ones. `unknown`: no information about memory."""

EXPANSION: Final = 4
"""Maximum factor from a size that was run to the next one: linear models fail beyond (published ones extrapolated 17x and ran
out)."""
PRECISION: Final = 0.03
"""A gap or a gain below this is not worth a probe."""
AIM: Final = 0.985
"""Share of the variable budget (budget - base) to aim at: noise must not turn a verification into a miss."""
SPREAD_LEFT_FREE: Final = 1.2
"""Multiple of the allocator's run-to-run spread that also stays free. Half of it is there so that most later trainings at the
answer stay within the budget, not only every second one. The rest is for later steps: a fragmenting heap continues to grow, more
and more slowly (glibc, four tasks: 3 % from the 4-8 steps of a probe to the 12th, 5 % from there to the 900th)."""
SCALE_SHARE: Final = 0.5
"""The scale probe runs at about half the expected cap."""
COARSE: Final = 0.5
"""Precision from which a search halves the size after a miss: its answer may be this far from the largest."""
MAX_MISSES: Final = 4


@dataclass(frozen=True)
class SizeRequest:
    """A size to run."""

    batch: int
    phase: SearchPhase
    why: str
    predicted_bytes: int
    mapped_share: float = 0.0
    """Share of the batch's predicted memory in blocks that are mapped one by one, which do not fragment."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of a search. Batches in samples, memory demand in bytes."""

    budget_bytes: int
    floor: int
    """Smallest batch that is useful as an answer (multiple_of, else 1)."""
    ceiling: int
    """Largest batch: the size of the dataset, --max-batch, ..."""
    ceiling_reason: LimitedBy
    multiple_of: int
    headroom: float
    over_budget_reason: LimitedBy = "memory"
    precision: float = PRECISION
    expansion: int = EXPANSION
    start: int | None = None
    """First size to run, which almost certainly fits. None: half of the size that should fit by the static curve."""


class CapacitySearch:
    """Run each size of `next_request` and `add` its result, until `next_request` returns None."""

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
        self._inconclusive_runs = 0
        self._smallest_inconclusive: int | None = None
        """Smallest size with an inconclusive run: it hung, or was killed from outside."""

    @property
    def model(self) -> MemoryModel:
        """Memory model, fitted to all runs so far. A run that ended over the budget is a point, too."""
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
        """Smallest size that is not worth a probe. Larger sizes are not, either."""
        above = [self._bounds.ceiling + 1]
        above.extend(size for size in (self._too_big, self._refused) if size is not None)
        return min(above)

    @property
    def limited_by(self) -> LimitedBy:
        """Reason why the answer is not larger."""
        best = self.best or 0
        if best >= self._round(self._bounds.ceiling):
            return self._bounds.ceiling_reason
        if self._refused is not None and (self._too_big is None or self._refused < self._too_big):
            return "model"
        if self._inconclusive_runs > 1 and self._too_big is None:
            return "time-limit"  # nearly always: a hanging run ends at this limit
        if self._too_big is None and self._largest_expected(self.model, self._bounds.ceiling) >= self._bounds.ceiling:
            return self._bounds.ceiling_reason  # the rest up to the ceiling is not worth a probe
        return self._bounds.over_budget_reason

    def restrict(self, bounds: Bounds) -> None:
        """Search between other bounds, which explain why a size was refused: this size is not a bound any more."""
        self._bounds = bounds
        self._refused = None

    def accept(self, sizes: Iterable[int]) -> None:
        """Add sizes that the task's code accepted in a trial. They are requested before others below a refused size."""
        self._accepted.update(sizes)

    @property
    def undone(self) -> str:
        """Text about the next request, if there were more time. Empty: none."""
        request = self.next_request()
        return "" if request is None else f"a batch of {request.batch} was next"

    @property
    def inconclusive(self) -> str:
        """Range that stays unknown because its runs were inconclusive. Empty: none."""
        if self._inconclusive_runs < 2:
            return ""
        return "two runs were inconclusive" + (f" above a batch of {self.best}" if self.best is not None else "")

    def next_request(self) -> SizeRequest | None:
        """Return the next size, or None if the search is over."""
        if self._inconclusive_runs > 1 or self._misses > MAX_MISSES:
            return None
        size, phase, why = self._next()
        if self._smallest_inconclusive is not None:
            size = min(size, ((self.best or 0) + self._smallest_inconclusive) // 2)
        size = self._round(size)
        if self.best is not None and (size <= self.best or size < self.best * (1 + self._precision)):
            return None
        if size >= self.upper or size < self._bounds.floor:
            return None
        return self._request(size, phase, why)

    def part_of(self, request: SizeRequest, batch: int) -> SizeRequest:
        """Return `request`, reduced to the `batch` that there is time for."""
        return self._request(batch, request.phase, f"there is no time for all of {request.batch}: {request.why}")

    def add(self, batch: int, verdict: Verdict, peak_bytes: int | None = None) -> None:
        """Record the result of `batch`, with `peak_bytes` if the run completed, within the budget or above it."""
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
                self._inconclusive_runs += 1
                self._smallest_inconclusive = min(batch, self._smallest_inconclusive or batch)

    def _request(self, size: int, phase: SearchPhase, why: str) -> SizeRequest:
        return SizeRequest(size, phase, why, round(self._predict(size)), self.model.mapped_share(size))

    @property
    def _precision(self) -> float:
        """Precision of the search. After a miss, not finer than the spread of runs: with many runs a lucky one would be
        selected."""
        return self._bounds.precision if self._too_big is None else max(self._bounds.precision, self._spread)

    @property
    def _step_down(self) -> float:
        """Factor after a run over the budget while nothing has fitted: a tenth less, or half if a coarse answer is enough."""
        return 0.9 if self._bounds.precision < COARSE else 0.5

    def _next(self) -> tuple[int, SearchPhase, str]:
        bounds, model = self._bounds, self.model
        target = self._largest_expected(model, bounds.ceiling)
        if self._too_big is not None or self._refused is not None:
            return self._between(target)
        if self.best is None:
            if bounds.start is not None:
                return min(bounds.start, bounds.ceiling), "scale", "evaluation should fit at the micro-batch of training"
            # Look beyond the ceiling, too: if everything fits easily, a probe for scale is not worth it.
            if self._largest_expected(model, bounds.ceiling * bounds.expansion) * SCALE_SHARE >= bounds.ceiling:
                return bounds.ceiling, "verify", "the largest possible batch should fit easily"
            scale = max(self._largest_expected(model, int(target * SCALE_SHARE)), bounds.floor)
            return scale, "scale", "half of the size that should fit by the static curve, to measure base and ratio"
        if target > self.best * bounds.expansion:
            why = f"{target} should fit, but one step increases the size by at most {bounds.expansion}x"
            return self._largest_expected(model, self.best * bounds.expansion), "expand", why
        peak = self._points.get(self.best)
        if len(self._points) > 1 and peak is not None:
            used = peak / bounds.budget_bytes
            side = "under" if used < bounds.headroom else "over"
            return (
                target,
                "expand",
                f"{used:.0%} of the budget used, {side} the {bounds.headroom:.0%} threshold; {target} should fit",
            )
        return target, "verify", "the largest size that should fit by the memory model"

    def _between(self, target: int) -> tuple[int, SearchPhase, str]:
        """Choose a size after a miss, between a size that fits and one that does not."""
        low, high = self.best or 0, self.upper
        accepted = [size for size in self._accepted if low * (1 + self._precision) <= size < high]
        if accepted and self._refused == high:
            return max(accepted), "bisect", f"the task's code accepted this size and refused {high}"
        if low == 0:
            if self._misses >= MAX_MISSES:
                return self._bounds.floor, "bisect", f"{high} does not fit, and no size has fitted yet: the smallest size is next"
            measured_over = self._over.get(high) is not None
            size = min(target, int(high * self._step_down)) if measured_over and target > 0 else high // 2
            return max(size, self._bounds.floor), "bisect", f"{high} does not fit, and no size has fitted yet"
        precision = self._precision
        if (high - low) / low <= precision:
            return low, "bisect", "close enough"
        if self._over.get(high) is not None:
            size = target if target > low * (1 + precision) else self._between_runs(low, high)
            size = min(size, int(high * (1 - 0.5 * precision * self._misses)))
            return size, "bisect", f"between {low}, which fits, and {high}, which exceeded the budget"
        # The geometric middle if they are far apart, a little above the middle if they are near: a miss costs no more than a fit.
        middle = round((low * high) ** 0.5) if high > 1.5 * low else low + (high - low) * 3 // 5
        return (
            min(middle, max(target, low + (high - low) // 3)),
            "bisect",
            f"between {low}, which fits, and {high}, which does not",
        )

    def _between_runs(self, low: int, high: int) -> int:
        """Largest batch in [low, high) that should stay within the budget, predicted from the measurements of both."""
        most = self._bounds.budget_bytes * AIM
        while high - low > 1:
            middle = (low + high) // 2
            if self._predict(middle) <= most:
                low = middle
            else:
                high = middle
        return low

    def _predict(self, size: int) -> float:
        """Predict the demand at `size`, bytes. Between a run that fitted and one over the budget, the model meets both."""
        model, low, high = self.model, self.best, self._too_big
        if low is None or high is None or not low < size < high or low not in self._points or high not in self._over:
            return model.predict(size)
        off_low, off_high = self._points[low] - model.predict(low), self._over[high] - model.predict(high)
        return model.predict(size) + off_low + (off_high - off_low) * (size - low) / (high - low)

    def _largest_expected(self, model: MemoryModel, ceiling: int) -> int:
        """Largest batch up to `ceiling` that should stay within the budget."""
        cautious = model.model_copy(update={"ratio": model.ratio * (1 + SPREAD_LEFT_FREE * self._spread)})
        variable = max(0.0, self._bounds.budget_bytes - model.base_bytes)
        return cautious.largest_within(model.base_bytes + variable * AIM, ceiling=ceiling)

    def _round(self, size: int) -> int:
        """Round down to a multiple of `multiple_of`, within the ceiling."""
        size = min(size, self._bounds.ceiling)
        return size - size % self._bounds.multiple_of
