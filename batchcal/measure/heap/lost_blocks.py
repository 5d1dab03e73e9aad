"""Number of heap blocks that a training loses to the handles of workers' batches, counted in a child."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.measure.children.runner import ChildRunner
from batchcal.measure.children.setting import ChildSetting
from batchcal.measure.heap import counting
from batchcal.measure.heap.handles_job import HandlesAnswer, HandlesArguments, count_lost_blocks


@dataclass
class LostBlocks:
    """Counts so far, by policy."""

    runner: ChildRunner
    _largest_size: int | None = None
    """Largest batch size that the task accepts. None: unknown."""
    _counted: dict[str, int | None] = field(default_factory=dict)

    def set_largest_size(self, largest_size: int | None) -> None:
        """Set the largest size that the task accepts, and forget the counts: their size may be one that the task refuses."""
        self._largest_size = largest_size
        self._counted.clear()

    def count(
        self, setting: ChildSetting, allocator: str, curve: Sequence[ShapePoint], order: tuple[int, ...] | None
    ) -> int | None:
        """Return the number of lost blocks of a step, counted once for each policy. None: unknown.

        Args:
            curve: static memory of training.
            order: indices of the largest samples.
        """
        if setting.one_size:
            return None
        if allocator not in self._counted:
            self._counted[allocator] = self._count(setting, allocator, curve, order)
        return self._counted[allocator]

    def _count(
        self, setting: ChildSetting, allocator: str, curve: Sequence[ShapePoint], order: tuple[int, ...] | None
    ) -> int | None:
        largest = self._largest_size
        batch = counting.counting_batch(curve, smallest=setting.smallest_batch, multiple_of=setting.multiple_of, most=largest)
        if largest is not None and batch > largest:
            return None
        limit_s = min(counting.LIMIT_S, self.runner.left_s * counting.SHARE_OF_TIME)
        arguments = HandlesArguments(setting=setting, batch=batch, limit_s=limit_s, order=order)
        limits = self.runner.limits(allocator, limit_s + counting.GRACE_S, host_fence=False)
        ending = self.runner.run(count_lost_blocks, arguments.model_dump(mode="json"), allocator, limits)
        try:
            return HandlesAnswer.model_validate(ending.returned).lost_blocks
        except ValidationError:
            return None
