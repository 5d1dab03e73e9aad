"""What is measured: a task as it was loaded, stepped as its user's own loop would step it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from batchcal.calibration.schema import OFF, Mode
from batchcal.guard.job import ChildContext
from batchcal.measure.children.setting import Setting
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.runtime.threads import apply_threads
from batchcal.workload.activation_checkpointing import GradientCheckpointManager
from batchcal.workload.batches import WorstCase
from batchcal.workload.load import load_task
from batchcal.workload.optimizers import needs_closure, set_mode
from batchcal.workload.step import evaluate, make_scaler, prepare
from batchcal.workload.task import Task


@dataclass(frozen=True)
class Subject:
    """A loaded task, ready to step."""

    task: Task
    device: torch.device
    scaler: GradScaler | None

    @classmethod
    def load(cls, setting: Setting) -> Subject:
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
        """The task with the loss that the user gave."""
        loss: object = self.task.loss
        return replace(self.task, loss=loss.loss) if isinstance(loss, _LastLossHeld) else self.task

    def train(self, batch: object, size: int, before: MicroBatch | None = None) -> None:
        """One optimizer step, the training's own, on one micro-batch and the one `before` it, where the optimizer takes two.

        With a tiny one before it the gradients are held while the large one runs, as they are when gradients accumulate. They
        are cleared before the next forward pass and not after the step, as most loops do it: with glibc's allocator that
        fragments more (a small transformer at one batch: 879-1004 MiB, 831-956 where they are cleared at once).
        """
        group = [MicroBatch(batch, size)]
        if before is not None and not needs_closure(self.task.optimizer):
            group.insert(0, before)
        run_group(self.task, group, device=self.device, scaler=self.scaler, clear_first=True)

    def warm_up(self, batch: object, size: int) -> None:
        """Two steps, of which the optimizer remembers nothing.

        A training makes the optimizer's state in its first large step, where it comes to lie among the activations. Made before,
        it lies below them, and glibc finds larger holes: 768 MiB at the peak of a small CNN where plain trainings had 801.
        """
        made_lazily = not self.task.optimizer.state
        for _ in range(2):
            self.train(batch, size)
        if made_lazily:
            self.task.optimizer.state.clear()

    def step(self, batch: object, size: int, mode: Mode, before: MicroBatch | None) -> None:
        """One step of `mode`, waited for."""
        if mode == "train":
            self.train(batch, size, before)
        else:
            evaluate(self.task, batch, device=self.device)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def warm_up_for(subject: Subject, worst: WorstCase, setting: Setting, context: ChildContext, *sizes: int) -> int:
    """Warm up a process that runs `sizes` then, arm the fence, and return the size of its tiny batches.

    A process of one size only is warmed up without the task: its first step is at that size, and has to be within the fence.
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
    """What torch starts with its first forward and backward pass counts against the fence where that is armed before."""
    weight = torch.ones(256, 256, requires_grad=True)
    (torch.ones(256, 256) @ weight).tanh().sum().backward()


class _LastLossHeld:
    """Computes the loss, and holds it until there is the next one, as `loss = ...` in a user's loop does.

    What it holds is small, the graph of a step without the activations; but it lies among the blocks of the next step, and
    glibc's heap fragments the more for it. A small transformer at one batch: 815 MiB without, 888 with it, 878 in plain loops.
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss
        self._held: object = None

    def __call__(self, model: object, batch: object) -> Tensor:
        loss = self.loss(model, batch)
        self._held = loss
        return loss


def limit_accelerator(device: torch.device, allowed_bytes: int) -> None:
    """Lets the caching allocator hand out no more than `allowed_bytes`: a real fence for what it owns."""
    if device.type == "cuda":
        _, total = torch.accelerator.get_memory_info(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_bytes / total), device)
