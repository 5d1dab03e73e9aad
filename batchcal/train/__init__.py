"""Plan -> training.

The package can be called, since `batchcal.train` is both this room and the public function: `batchcal.train(task, plan)` is
`batchcal.train.loop.train(task, plan)`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcal.core.clock import Clock
    from batchcal.core.progress import Progress
    from batchcal.plan.plan import Plan
    from batchcal.train.memory.predictor import MemoryPredictor
    from batchcal.train.options import TrainOptions
    from batchcal.train.result import TrainingResult
    from batchcal.train.stop import StopWish
    from batchcal.workload.task import Task


class _Room(ModuleType):
    def __call__(
        self,
        task: Task,
        plan: Plan,
        options: TrainOptions | None = None,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        predictor: MemoryPredictor | None = None,
        wish: StopWish | None = None,
        progress: Progress | None = None,
        clock: Clock | None = None,
    ) -> TrainingResult:
        from batchcal.train.loop import train

        return train(
            task,
            plan,
            options,
            checkpoint=checkpoint,
            resume=resume,
            predictor=predictor,
            wish=wish,
            progress=progress,
            clock=clock,
        )


sys.modules[__name__].__class__ = _Room
