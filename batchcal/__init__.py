"""batchcal measures the batch size, workers and threads that a PyTorch training can use on this machine.

Names are loaded on first use, so that `import batchcal` takes milliseconds and does not load torch. A custom training loop uses
a calibration like this:

    plan = batchcal.load_plan(effective_batch=128)
    batchcal.apply(plan)
    loader = batchcal.make_loader(plan, dataset)
    for group in batchcal.accumulate(plan, loader):
        for batch, weight in group:
            (weight * loss_of(model, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from batchcal.core.version import __version__

if TYPE_CHECKING:
    from batchcal.calibration.schema import Calibration
    from batchcal.detect.detect import detect
    from batchcal.extras.batching.estimate import estimate_training_memory
    from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
    from batchcal.extras.multitask.gradnorm import GradNormBalancer
    from batchcal.measure.library import calibrate
    from batchcal.plan.load import load_calibration as load
    from batchcal.plan.load import load_plan
    from batchcal.plan.plan import Plan
    from batchcal.runtime.accumulate import accumulate
    from batchcal.runtime.apply import apply
    from batchcal.runtime.loader import make_eval_loader, make_loader
    from batchcal.train.loop import train
    from batchcal.train.options import TrainOptions
    from batchcal.train.report.monitor import TrainingMonitor
    from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator, HeterogeneousSample
    from batchcal.workload.model.activation_checkpointing import GradientCheckpointManager
    from batchcal.workload.task import Task

__all__ = [
    "Task",
    "detect",
    "calibrate",
    "load",
    "Calibration",
    "load_plan",
    "Plan",
    "apply",
    "make_loader",
    "make_eval_loader",
    "accumulate",
    "train",
    "TrainOptions",
    "TrainingMonitor",
    "MemoryAwareBatchSampler",
    "HeterogeneousCollator",
    "HeterogeneousSample",
    "HeterogeneousBatch",
    "GradNormBalancer",
    "GradientCheckpointManager",
    "estimate_training_memory",
    "__version__",
]

_HOME: Final = {
    "Task": ("batchcal.workload.task", "Task"),
    # The package of this name is callable: importing anything from it sets the attribute `batchcal.detect` to the package.
    "detect": ("batchcal", "detect"),
    "calibrate": ("batchcal.measure.library", "calibrate"),
    "load": ("batchcal.plan.load", "load_calibration"),
    "Calibration": ("batchcal.calibration.schema", "Calibration"),
    "load_plan": ("batchcal.plan.load", "load_plan"),
    "Plan": ("batchcal.plan.plan", "Plan"),
    "apply": ("batchcal.runtime.apply", "apply"),
    "make_loader": ("batchcal.runtime.loader", "make_loader"),
    "make_eval_loader": ("batchcal.runtime.loader", "make_eval_loader"),
    "accumulate": ("batchcal.runtime.accumulate", "accumulate"),
    "train": ("batchcal", "train"),
    "TrainOptions": ("batchcal.train.options", "TrainOptions"),
    "TrainingMonitor": ("batchcal.train.report.monitor", "TrainingMonitor"),
    "MemoryAwareBatchSampler": ("batchcal.extras.batching.sampler", "MemoryAwareBatchSampler"),
    "HeterogeneousCollator": ("batchcal.workload.collator", "HeterogeneousCollator"),
    "HeterogeneousSample": ("batchcal.workload.collator", "HeterogeneousSample"),
    "HeterogeneousBatch": ("batchcal.workload.collator", "HeterogeneousBatch"),
    "GradNormBalancer": ("batchcal.extras.multitask.gradnorm", "GradNormBalancer"),
    "GradientCheckpointManager": ("batchcal.workload.model.activation_checkpointing", "GradientCheckpointManager"),
    "estimate_training_memory": ("batchcal.extras.batching.estimate", "estimate_training_memory"),
}
"""Module and attribute of each public name."""


if not TYPE_CHECKING:  # so that type checkers report a misspelt name

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _HOME[name]
        if module == __name__:
            return import_module(f"{module}.{attribute}")
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
