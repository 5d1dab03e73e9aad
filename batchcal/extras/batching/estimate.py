"""Memory of one training step on a dataset and its mix of task types, predicted without running the step.

The numbers are predicted, never measured: the step runs on fake tensors, which have shapes but no data, and the sizes of its
memory blocks are added. The prediction covers only tensors. It does not include Python, torch and its libraries (about 250 MB),
loader workers, and losses of the allocator. It shows in advance which task type takes the memory, and what another mix would
take. For a capacity use `batchcal calibrate`, which runs the step.

Predicted activations as a share of the bytes that torch's CPU allocator had handed out at once in a real step of 32 samples, for
the shipped examples (torch 2.13): 1.00 for text pairs and PatchTST, 0.98 for the handwriting CNN, 0.76 for the 3-d convolutions
of multiimage; the same for typical and for the largest samples. Convolutions need work space that does not follow from shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from torch import nn

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.values import Frozen
from batchcal.extras.batching.task_mix import Mix
from batchcal.workload.data.sample_size import nest_bytes
from batchcal.workload.model.fake_step import FakeStep, fake_step
from batchcal.workload.task import Task

LOOK_LIMIT_S: Final = 2.0
"""Time limit for loading samples to learn their costs and task types, seconds. Loading of the current sample is completed."""


class StepMemory(Frozen):
    """Memory of one forward and backward pass over one batch."""

    batch_bytes: int
    """Bytes of the collated batch, padding included."""
    activation_bytes: int
    """Peak bytes of the pass beyond batch, parameters, buffers and gradients."""

    @property
    def bytes(self) -> int:
        return self.batch_bytes + self.activation_bytes


class GroupMemory(Frozen):
    """Memory and share of one task type."""

    share: float
    """Share of the samples, 0 to 1."""
    mean_cost: float
    """Mean cost of a sample by the task's `size_of`. Without `size_of`: its number of elements."""
    alone: StepMemory | None
    """Memory of a batch of typical samples of only this type. None: the task cannot run on such a batch; see `notes`."""


class TrainingMemory(Frozen):
    """Predicted bytes of one training step with `batch_size` samples per micro-batch."""

    status: Literal["predicted"] = "predicted"
    batch_size: int
    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    """Gradients, held while micro-batches accumulate."""
    optimizer_bytes: int
    """State of the optimizer after its first step."""
    optimizer_step_bytes: int
    """Temporary memory of the optimizer step."""
    mean: StepMemory
    """A typical batch: each task type by its share, with small and large samples."""
    worst: StepMemory
    """The costliest known samples, or another of these batches if it takes more."""
    groups: dict[str, GroupMemory]
    """By task type. A single one named `all` if the task defines none."""
    notes: tuple[str, ...]
    """Remarks on these numbers."""

    @property
    def static_bytes(self) -> int:
        """Memory held between steps, plus gradients."""
        return self.parameter_bytes + self.buffer_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """Peak on a typical batch."""
        return self._total(self.mean)

    @property
    def worst_total_bytes(self) -> int:
        """Peak on the largest samples."""
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
    """Predict the memory of a training step of `task`. Model, optimizer and random states are unchanged afterwards.

    Samples are loaded and collated, which takes its usual time. There are two passes, and one more for each task type. A pass
    takes 20 to 40 ms, or longer if the model has very many operations (10 s for a recurrent model of 512 steps).

    Args:
        batch_size: number of samples of a micro-batch.
        distribution: task type -> share, scaled to sum to 1. Other types are left out, also of the worst case. None: the shares
            of the dataset, according to the loaded samples.
        look_limit_s: time limit for loading samples, seconds.

    Raises:
        UsageError: a batch without samples, or a distribution over unknown types.
        UserCodeError: the step cannot run on tensors without values (`.item()`, a boolean index). Errors of the dataset
            propagate unchanged.
    """
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} samples cannot be trained", try_="batch_size=32")
    mix = Mix.look(task, batch_size, limit_s=look_limit_s, seed=seed)
    shares = mix.shares(distribution)
    notes = list(mix.notes())
    groups: dict[str, GroupMemory] = {}
    with fake_step(task) as tracer:
        mean = _step(tracer, mix.typical(batch_size, shares))
        costliest = _step(tracer, mix.largest(batch_size, shares))
        for name, share in shares.items():
            alone: StepMemory | None = None
            try:
                alone = _step(tracer, mix.typical(batch_size, {name: 1.0}))
            except UserCodeError as error:
                notes.append(f"a batch of only {name!r} samples cannot be traced: {error.what}")
            groups[name] = GroupMemory(share=share, mean_cost=mix.mean_cost(name), alone=alone)
        optimizer = tracer.optimizer()
    worst = max(
        [costliest, mean, *(group.alone for group in groups.values() if group.alone is not None)], key=lambda step: step.bytes
    )
    if optimizer.note:
        notes.append(optimizer.note)
    parameters = list(task.model.parameters())
    optimized: list[nn.Parameter] = [parameter for group in task.optimizer.param_groups for parameter in group["params"]]
    learning = {id(parameter): parameter for parameter in (*parameters, *optimized) if parameter.requires_grad}
    return TrainingMemory(
        batch_size=batch_size,
        parameter_bytes=sum(parameter.nbytes for parameter in parameters),
        buffer_bytes=sum(parameter.nbytes for parameter in task.model.buffers()),
        gradient_bytes=sum(parameter.nbytes for parameter in learning.values()),
        optimizer_bytes=optimizer.state_bytes,
        optimizer_step_bytes=optimizer.step_bytes,
        mean=mean,
        worst=worst,
        groups=groups,
        notes=tuple(notes),
    )


def _step(tracer: FakeStep, batch: object) -> StepMemory:
    return StepMemory(batch_bytes=nest_bytes(batch), activation_bytes=tracer.peak_bytes(batch))
