"""What a training is asked to do, besides what the plan says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from batchcal.core.errors import UsageError
from batchcal.train.sizes.controller import ControlSettings

# Here and not where they are obeyed: who only says what is wanted need not load torch.
Schedule = Literal["constant", "linear", "cosine"]
LearningRateRule = Literal["none", "linear", "sqrt"]
Batching = Literal["plain", "greedy", "bucketed"]
LossWeights = Literal["task", "gradnorm", "gradnorm-paper"]
WhenSplit = Literal["stop", "split"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Raises:
    UsageError: a value that trains nothing or contradicts another.
    """

    epochs: int = 1
    """In all, those before a resume too."""
    seed: int = 0
    drop_last: bool = False
    """Leave the last, smaller group of each epoch out."""
    checkpoint_every_s: float = 600.0
    """Within an epoch, after so many seconds a checkpoint is written; where one was asked for, and after every epoch besides."""
    patience: int | None = None
    """Stop after that many epochs in a row without a better `watch`. None: never."""
    min_delta: float = 0.0
    """A result counts as better when it is by more than this."""
    watch: str = "loss"
    """What early stopping looks at: `loss` of the evaluation data, or a metric of the task."""
    watch_mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger one is better."""
    schedule: Schedule = "constant"
    """Of the learning rate, after the warm-up, over all epochs: `constant`, `linear` or `cosine` down to zero."""
    warmup: float = 0.0
    """Share of the training during which the learning rate rises from zero."""
    lr_rule: LearningRateRule = "none"
    """What a step of another effective batch than `lr_reference_batch` does to the learning rate: `none`, `linear`, `sqrt`."""
    lr_reference_batch: int | None = None
    """The effective batch that the learning rate was chosen for. None: the plan's."""
    max_norm: float | None = None
    """Clip the gradient of each optimizer step to this Euclidean norm."""
    batching: Batching = "plain"
    """`plain`: as shuffled, in the plan's sizes. `bucketed`, `greedy`: by the cost of each sample, under the plan's memory."""
    balance: float = 0.5
    """Between memory fit (0) and diversity of task types within a micro-batch (1), where batches are made by cost."""
    window: int | None = None
    """Optimizer steps whose samples are put together by cost. 1: each keeps the samples that plain shuffling would give it."""
    loss_weights: LossWeights = "task"
    """How several task losses are weighed: by the task's own `loss`, or by the norms of their gradients, after two rules."""
    start_micro_batch: int | None = None
    """Begin with this micro-batch and grow while there is room. None: the plan's from the start."""
    control: ControlSettings = field(default_factory=ControlSettings)
    on_oom: WhenSplit = "stop"
    """What to do with a model that has BatchNorm when a micro-batch does not fit: it does not train the same in halves."""
    fence: bool = True
    """Let allocations fail that would have the kernel kill. On the CPU only."""
    memory_limit_bytes: int | None = None
    """What this process may hold of the host's memory, where others that come and go have a part of it, too. None: all that is
    free."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"{self.epochs} epochs train nothing", try_="--epochs 1")
        if not self.checkpoint_every_s > 0:
            raise UsageError(f"a checkpoint every {self.checkpoint_every_s} s cannot be", try_='checkpoint_every = "10m"')
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"a patience of {self.patience} epochs would stop before the first", try_="--patience 3")
        if self.min_delta < 0:
            raise UsageError(f"min_delta {self.min_delta} is below 0", try_="min_delta = 0.001")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"a warm-up over {self.warmup:.0%} of the training leaves nothing after it", try_="warmup = 0.05")
        if self.max_norm is not None and not self.max_norm > 0:
            raise UsageError(f"clipping to a norm of {self.max_norm} leaves no gradient", try_="max_norm = 1.0")
        if self.start_micro_batch is not None and self.start_micro_batch < 1:
            raise UsageError(f"a micro-batch of {self.start_micro_batch} holds no sample", try_="start_micro_batch = 8")
