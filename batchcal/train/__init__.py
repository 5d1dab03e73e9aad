"""Plan -> training.

The package is callable, because `batchcal.train` is both this package and the public function: `batchcal.train(task, plan)` is
`batchcal.train.loop.train(task, plan)`, which documents the arguments. Type checkers see that function, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcal.train.result import TrainingResult


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: object, **options: object) -> TrainingResult:
        from batchcal.train.loop import train

        run: Callable[..., TrainingResult] = train
        return run(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
