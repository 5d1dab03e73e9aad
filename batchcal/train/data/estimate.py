"""What one training step on a dataset and its mix of task types takes in memory, told without running it.

Predicted, never measured: the step runs on fake tensors, which have shapes and hold nothing, and its blocks of memory are added.
What is told is tensors. What the process takes besides is not in it: Python, torch and its libraries (some 250 MB), loader
workers, and what the allocator loses. This says beforehand which task type takes the memory and what another mix would take; a
capacity comes from `batchcal calibrate`, which runs the step.

Activations, against the bytes that torch's CPU allocator had handed out at once in a real step of 32 samples of the shipped
examples (torch 2.13): text pairs and PatchTST 1.00 of them, the handwriting CNN 0.98, the 3-d convolutions of multiimage 0.76;
for typical and for the largest samples alike. Convolutions take work space that no shape tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from torch import nn

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.values import Frozen
from batchcal.train.data.mix import Mix
from batchcal.workload.on_paper import OnPaper, on_paper
from batchcal.workload.sample_size import nest_bytes
from batchcal.workload.task import Task

LOOK_LIMIT_S: Final = 2.0
"""So long samples are looked at to learn their costs and task types; the one being loaded is waited for."""


class StepMemory(Frozen):
    """One forward and backward pass over one batch."""

    batch_bytes: int
    """The collated batch, padding included."""
    activation_bytes: int
    """Most that the pass holds at once beyond batch, parameters, buffers and gradients."""

    @property
    def bytes(self) -> int:
        return self.batch_bytes + self.activation_bytes


class GroupMemory(Frozen):
    """One task type."""

    share: float
    """Of the samples, 0 to 1."""
    mean_cost: float
    """Of a sample, by the task's `size_of`; its elements where there is none."""
    alone: StepMemory | None
    """A batch of this type only, of typical samples. None: the task cannot be run on one, as `notes` say."""


class TrainingMemory(Frozen):
    """Predicted bytes of one training step at `batch_size` samples a micro-batch."""

    status: Literal["predicted"] = "predicted"
    batch_size: int
    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    """Held while micro-batches accumulate."""
    optimizer_bytes: int
    """What the optimizer keeps once it has stepped."""
    optimizer_step_bytes: int
    """What its step takes besides, and gives back."""
    mean: StepMemory
    """A typical batch: every task type by its share, small and large samples of each."""
    worst: StepMemory
    """The costliest samples that are known; another of the batches here, where that takes more."""
    groups: dict[str, GroupMemory]
    """By task type; one that is called `all` where the task knows none."""
    notes: tuple[str, ...]
    """What to know about these numbers."""

    @property
    def static_bytes(self) -> int:
        """What is there between steps, and the gradients."""
        return self.parameter_bytes + self.buffer_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """Most at once, on a typical batch."""
        return self._total(self.mean)

    @property
    def worst_total_bytes(self) -> int:
        """Most at once, on the largest samples."""
        return self._total(self.worst)

    def _total(self, step: StepMemory) -> int:
        return self.static_bytes + max(step.bytes, self.optimizer_step_bytes)


def estimate_training_memory(
    task: Task,
    batch_size: int,
    *,
    distribution: Mapping[str, float] | None = None,
    look_limit_s: float = LOOK_LIMIT_S,
    seed: int = 0,
) -> TrainingMemory:
    """Predict what a training step of `task` takes. Model, optimizer and random states are afterwards what they were.

    Samples are really loaded and collated: it takes as long as that and 20 to 40 ms a pass, of which there are two and one for
    each task type; a model of very many operations takes longer (a recurrent one of 512 steps 10 s a pass).

    Args:
        batch_size: samples of a micro-batch.
        distribution: task type -> share, scaled to sum to 1; types that are not named are left out, of the worst case too. None:
            the dataset's own, as far as it was looked at.
        look_limit_s: how long samples may be looked at.

    Raises:
        UsageError: a batch without samples, or a distribution over types that are not there.
        UserCodeError: the step cannot be run on tensors without values (`.item()`, a boolean index). What the dataset raises is
            let pass.
    """
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} samples makes no step", try_="batch_size=32")
    mix = Mix.look(task, batch_size, limit_s=look_limit_s, seed=seed)
    shares = mix.shares(distribution)
    notes = list(mix.notes())
    groups: dict[str, GroupMemory] = {}
    with on_paper(task) as paper:
        mean = _step(paper, mix.typical(batch_size, shares))
        costliest = _step(paper, mix.largest(batch_size, shares))
        for name, share in shares.items():
            alone: StepMemory | None = None
            try:
                alone = _step(paper, mix.typical(batch_size, {name: 1.0}))
            except UserCodeError as error:
                notes.append(f"of {name!r} alone no step can be traced: {error.what}")
            groups[name] = GroupMemory(share=share, mean_cost=mix.mean_cost(name), alone=alone)
        optimizer = paper.optimizer()
    worst = max([costliest, mean, *(one.alone for one in groups.values() if one.alone is not None)], key=lambda step: step.bytes)
    if optimizer.note:
        notes.append(optimizer.note)
    parameters = list(task.model.parameters())
    optimized: list[nn.Parameter] = [one for group in task.optimizer.param_groups for one in group["params"]]
    learning = {id(one): one for one in (*parameters, *optimized) if one.requires_grad}
    return TrainingMemory(
        batch_size=batch_size,
        parameter_bytes=sum(one.nbytes for one in parameters),
        buffer_bytes=sum(one.nbytes for one in task.model.buffers()),
        gradient_bytes=sum(one.nbytes for one in learning.values()),
        optimizer_bytes=optimizer.state_bytes,
        optimizer_step_bytes=optimizer.step_bytes,
        mean=mean,
        worst=worst,
        groups=groups,
        notes=tuple(notes),
    )


def _step(paper: OnPaper, batch: object) -> StepMemory:
    return StepMemory(batch_bytes=nest_bytes(batch), activation_bytes=paper.peak_bytes(batch))
