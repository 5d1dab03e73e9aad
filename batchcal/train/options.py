"""What a training is asked to do, besides what the plan says."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchcal.train.sizes.controller import ControlSettings
from batchcal.values.settings import Batching, LearningRateRule, LossWeights, Schedule, TrainSettings, WatchMode, WhenSplit


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Raises:
    UsageError: a value that trains nothing or contradicts another.
    """

    epochs: int = TrainSettings.epochs.default
    """In all, those before a resume too."""
    max_steps: int | None = None
    """Stop after that many optimizer steps in all, those before a resume too, or after `epochs`: whichever comes first. A stream
    that has neither an end nor a length needs it. None: after `epochs`."""
    seed: int = 0
    drop_last: bool = TrainSettings.drop_last.default
    """Leave the last, smaller group of each epoch out."""
    checkpoint_every_s: float = TrainSettings.checkpoint_every.default
    """Within an epoch, after so many seconds a checkpoint is written; where one was asked for, and after every epoch besides."""
    patience: int | None = None
    """Stop after that many epochs in a row without a better `watch`. None: never."""
    min_delta: float = TrainSettings.min_delta.default
    """A result counts as better when it is by more than this."""
    watch: str = TrainSettings.watch.default
    """What early stopping looks at: `loss` of the evaluation data, or a metric of the task."""
    watch_mode: WatchMode = TrainSettings.watch_mode.default
    """Whether a smaller or a larger one is better."""
    schedule: Schedule = TrainSettings.schedule.default
    """Of the learning rate, after the warm-up, over all epochs: `constant`, `linear` or `cosine` down to zero."""
    warmup: float = TrainSettings.warmup.default
    """Share of the training during which the learning rate rises from zero."""
    lr_rule: LearningRateRule = TrainSettings.lr_rule.default
    """What a step of another effective batch than `lr_reference_batch` does to the learning rate: `none`, `linear`, `sqrt`."""
    lr_reference_batch: int | None = None
    """The effective batch that the learning rate was chosen for. None: the plan's."""
    max_norm: float | None = None
    """Clip the gradient of each optimizer step to this Euclidean norm."""
    batching: Batching = TrainSettings.batching.default
    """`plain`: as shuffled, in the plan's sizes. `bucketed`, `greedy`: by the cost of each sample, under the plan's memory."""
    balance: float = TrainSettings.balance.default
    """Between memory fit (0) and diversity of task types within a micro-batch (1), where batches are made by cost."""
    window: int | None = None
    """Optimizer steps whose samples are put together by cost. 1: each keeps the samples that plain shuffling would give it."""
    loss_weights: LossWeights = TrainSettings.loss_weights.default
    """How several task losses are weighed: by the task's own `loss`, or by the norms of their gradients, after two rules."""
    start_micro_batch: int | None = None
    """Begin with this micro-batch and grow while there is room. None: the plan's from the start."""
    control: ControlSettings = field(default_factory=ControlSettings)
    on_oom: WhenSplit = TrainSettings.on_oom.default
    """What to do with a model that has BatchNorm when a micro-batch does not fit: it does not train the same in halves."""
    fence: bool = TrainSettings.fence.default
    """Let allocations fail that would have the kernel kill. On the CPU only."""
    memory_limit_bytes: int | None = None
    """What this process may hold of the host's memory, where others that come and go have a part of it, too. None: all that is
    free."""

    def __post_init__(self) -> None:
        for option in TrainSettings.options():
            value = getattr(self, option.field, None)
            if value is not None:
                option.checked(value)
