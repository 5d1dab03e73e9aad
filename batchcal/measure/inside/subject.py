"""The measured object: a task as it was loaded. Its steps run as in the user's own loop."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from batchcal.calibration.schema import OFF, Mode
from batchcal.guard.job import ChildContext
from batchcal.measure.children.setting import ChildSetting
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.runtime.threads import apply_threads
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.model.activation_checkpointing import GradientCheckpointManager
from batchcal.workload.model.optimizers import needs_closure, set_mode
from batchcal.workload.spec.load import load_task
from batchcal.workload.step import evaluate, make_scaler, prepare
from batchcal.workload.task import Task


@dataclass(frozen=True)
class Subject:
    """A loaded task, ready to step."""

    task: Task
    device: torch.device
    scaler: GradScaler | None

    @classmethod
    def load(cls, setting: ChildSetting) -> Subject:
        apply_threads(setting.intra_op_threads, setting.interop_threads)
        random.seed(setting.seed)
        torch.manual_seed(setting.seed)
        task = load_task(setting.reference, device=setting.device)
        if setting.activation_checkpointing != OFF:
            GradientCheckpointManager(task.model, setting.activation_checkpointing).enable()
        return cls.of(task, torch.device(setting.device))

    @classmethod
    def of(cls, task: Task, device: torch.device) -> Subject:
        prepare(task, device)
        set_mode(task, training=True)
        task = replace(task, loss=_LastLossHeld(task.loss))
        return cls(task, device, make_scaler(task, device))

    def plain_task(self) -> Task:
        """Return the task with the loss that the user gave."""
        loss: object = self.task.loss
        return replace(self.task, loss=loss.loss) if isinstance(loss, _LastLossHeld) else self.task

    def train(self, batch: object, size: int, before: MicroBatch | None = None) -> None:
        """Run one optimizer step, as a training does, on one micro-batch and on the one `before` it, if the optimizer takes two.

        With a tiny one before it, the gradients are held while the large one runs, as in accumulation. They are cleared before
        the next forward pass and not after the step, as in most loops. With glibc's allocator that fragments more (a small
        transformer at one batch: 879-1004 MiB, and 831-956 if they are cleared at once).
        """
        group = [MicroBatch(batch, size)]
        if before is not None and not needs_closure(self.task.optimizer):
            group.insert(0, before)
        run_group(self.task, group, device=self.device, scaler=self.scaler, clear_first=True)

    def warm_up(self, batch: object, size: int) -> None:
        """Run two steps, of which the optimizer keeps no state.

        A training creates the optimizer's state in its first large step, so it lies among the activations. If it is created
        before, it lies below them, and glibc finds larger holes: 768 MiB at the peak of a small CNN, and 801 in plain trainings.
        """
        created_lazily = not self.task.optimizer.state
        for _ in range(2):
            self.train(batch, size)
        if created_lazily:
            self.task.optimizer.state.clear()

    def step(self, batch: object, size: int, mode: Mode, before: MicroBatch | None) -> None:
        """Run one step of `mode` and wait for its end."""
        if mode == "train":
            self.train(batch, size, before)
        else:
            evaluate(self.task, batch, device=self.device)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def warm_up_for(subject: Subject, worst: WorstCase, setting: ChildSetting, context: ChildContext, *sizes: int) -> int:
    """Warm up a process that then runs `sizes`, arm the fence, and return the size of its tiny batches.

    A process of one size only is warmed up without the task: its first step has that size, and must stay within the fence.
    """
    context.phase("warm-up")
    tiny = setting.warm_up_size(*sizes)
    if setting.one_size:
        _start_threads()
    else:
        subject.warm_up(worst.batch(tiny), tiny)
    context.arm()
    context.phase("measure")
    return tiny


def _start_threads() -> None:
    """Start the threads of torch's first forward and backward pass. They count against the fence if it is armed before."""
    weight = torch.ones(256, 256, requires_grad=True)
    (torch.ones(256, 256) @ weight).tanh().sum().backward()


class _LastLossHeld:
    """Computes the loss, and holds it until there is the next one, as `loss = ...` in a user's loop does.

    The held memory is small: the graph of a step without the activations. But it lies among the blocks of the next step, and
    glibc's heap fragments more. A small transformer at one batch: 815 MiB without, 888 with it, 878 in plain loops.
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss
        self._last_loss: object = None

    def __call__(self, model: object, batch: object) -> Tensor:
        loss = self.loss(model, batch)
        self._last_loss = loss
        return loss


def limit_accelerator(device: torch.device, allowed_bytes: int) -> None:
    """Limit the caching allocator to `allowed_bytes`: a real fence for the memory that it owns."""
    if device.type == "cuda":
        _, total = torch.accelerator.get_memory_info(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_bytes / total), device)
