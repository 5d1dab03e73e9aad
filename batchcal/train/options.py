"""Options of a training, in addition to its plan."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchcal.train.sizes.controller import ControlSettings
from batchcal.values.settings import Batching, LearningRateRule, LossWeights, Schedule, TrainSettings, WatchMode, WhenSplit


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Raises:
    UsageError: a value trains nothing or contradicts another value.
    """

    epochs: int = TrainSettings.epochs.default
    """Number of epochs in total, including those before a resume."""
    max_steps: int | None = None
    """Stop after this number of optimizer steps in total, including those before a resume, or after `epochs`: whichever is first.
    A stream that has neither an end nor a length needs it. None: after `epochs`."""
    seed: int = 0
    drop_last: bool = TrainSettings.drop_last.default
    """Leave out the last, smaller group of each epoch."""
    checkpoint_every_s: float = TrainSettings.checkpoint_every.default
    """Seconds between two checkpoints within an epoch, if checkpoints are requested. Every epoch also ends with a checkpoint."""
    patience: int | None = None
    """Stop after this number of consecutive epochs without a better `watch`. None: never."""
    min_delta: float = TrainSettings.min_delta.default
    """A result counts as better if it differs by more than this."""
    watch: str = TrainSettings.watch.default
    """Value that early stopping watches: `loss` of the evaluation data, or a metric of the task."""
    watch_mode: WatchMode = TrainSettings.watch_mode.default
    """Direction of a better value: smaller or larger."""
    schedule: Schedule = TrainSettings.schedule.default
    """Schedule of the learning rate after the warm-up, over all epochs: `constant`, `linear` or `cosine` down to zero."""
    warmup: float = TrainSettings.warmup.default
    """Share of the training during which the learning rate rises from zero."""
    lr_rule: LearningRateRule = TrainSettings.lr_rule.default
    """Effect of another effective batch than `lr_reference_batch` on the learning rate: `none`, `linear`, `sqrt`."""
    lr_reference_batch: int | None = None
    """The effective batch that the learning rate was chosen for. None: the plan's."""
    max_norm: float | None = None
    """Clip the gradient of each optimizer step to this Euclidean norm."""
    batching: Batching = TrainSettings.batching.default
    """`plain`: shuffled, in the plan's sizes. `bucketed`, `greedy`: by the cost of each sample, under the plan's memory."""
    balance: float = TrainSettings.balance.default
    """Balance between memory fit (0) and diversity of task types within a micro-batch (1), if batches are made by cost."""
    window: int | None = None
    """Number of optimizer steps whose samples are grouped by cost. 1: each keeps the samples that plain shuffling gives it."""
    loss_weights: LossWeights = TrainSettings.loss_weights.default
    """Weighting of several task losses: by the task's own `loss`, or by the norms of their gradients, by one of two rules."""
    start_micro_batch: int | None = None
    """Begin with this micro-batch and increase it while memory is free. None: the plan's from the start."""
    control: ControlSettings = field(default_factory=ControlSettings)
    on_oom: WhenSplit = TrainSettings.on_oom.default
    """Action for a model with BatchNorm when a micro-batch does not fit: the model does not train the same in halves."""
    fence: bool = TrainSettings.fence.default
    """Let allocations fail that would make the kernel kill the process. On the CPU only."""
    memory_limit_bytes: int | None = None
    """Host memory that this process may hold, if other, temporary processes use a part of it, too. None: all free memory."""

    def __post_init__(self) -> None:
        for option in TrainSettings.options():
            value = getattr(self, option.field, None)
            if value is not None:
                option.checked(value)
