"""State of a training on disk. It is written to a separate file and renamed, and read without running code from it."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from batchcal.core.errors import BatchcalError, NotSaved, UsageError
from batchcal.core.files import sync_folder
from batchcal.core.numpy_state import numpy_state, restore_numpy
from batchcal.core.values import Record
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
from batchcal.extras.multitask.gradnorm import GradNormBalancer
from batchcal.runtime.group import Skip
from batchcal.train.checkpoints.extra_state import ExtraState
from batchcal.train.checkpoints.files import partial_path
from batchcal.train.checkpoints.lock import PartialFile
from batchcal.train.result import EpochResult
from batchcal.workload.model.optimizers import evaluated_parameters, inner_optimizers, restore_trained_parameters
from batchcal.workload.model.parameters import parameters_outside_model
from batchcal.workload.task import Task

# Format history
# 1 - (0.1) first version
# 2 - (0.2) `beside_model`: the parameters that the optimizer holds and the model does not
FORMAT: Final = 2


class Standing(Record):
    """Progress of a training, without tensors."""

    format: int = FORMAT
    seed: int
    effective_batch: int
    train_samples: int | None
    """None: a stream."""
    epoch: int
    """The current epoch, or the next one; from 0."""
    group: int
    """Optimizer steps done in this epoch."""
    steps: int = 0
    """Optimizer steps in all epochs."""
    weighted_loss: float = 0.0
    """Sum of loss x weight over the steps of this epoch."""
    weight: float = 0.0
    samples: int = 0
    """Samples trained in this epoch. A resumed run continues there, for any size of its steps."""
    wall_s: float = 0.0
    """Seconds spent on the steps of this epoch."""
    skipped: int = 0
    """Number of steps of this epoch that the optimizer skipped."""
    last_skip: Skip | None = None
    """Reason for the latest skipped step of the training."""
    history: tuple[EpochResult, ...] = ()
    """Results of the earlier epochs."""


def save_checkpoint(
    path: Path,
    standing: Standing,
    *,
    task: Task,
    scaler: GradScaler | None = None,
    balancer: GradNormBalancer | None = None,
    sampler: MemoryAwareBatchSampler | None = None,
    extra_state: ExtraState | None = None,
) -> None:
    """Write model, optimizer, scaler, the generators' states and `standing`. An earlier checkpoint stays until this is complete.

    Tensors are written one by one: memory has no second copy of the model, except if the optimizer has modes.

    Raises:
        NotSaved: the disk is full or read-only, permission is missing, another run writes the file, or a state cannot be written.
            The earlier checkpoint is unchanged.
    """
    temporary = partial_path(path)
    partial = PartialFile(path, temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.lock()
        with evaluated_parameters(task) as trained:
            content = _content(task, standing, scaler=scaler, balancer=balancer, sampler=sampler)
            state = None if extra_state is None else extra_state.state()
            torch.save(content | {"trained_parameters": trained, "beside_task": state}, temporary)
        partial.commit()
        sync_folder(path.parent)
    except BaseException as error:
        full = _disk_is_full(temporary)
        partial.discard()
        # Signals are raised unchanged. All other errors mean that the checkpoint could not be written, which does not end a
        # training: torch reports a full disk as a RuntimeError, and a state that cannot be pickled as almost any error.
        if isinstance(error, BatchcalError) or not isinstance(error, Exception):
            raise
        lines = str(error).strip().splitlines()
        raise NotSaved(
            f"the checkpoint could not be written to {path}",
            known="the disk is full" if full else lines[0] if lines else type(error).__name__,
            try_="--checkpoint FILE, on a disk with free space",
        ) from error


def _disk_is_full(partial: Path) -> bool:
    """True if less space is left than was already written: torch reports positions in the file instead of the cause."""
    try:
        disk = os.statvfs(partial.parent)
        return disk.f_bavail * disk.f_frsize < partial.stat().st_size
    except OSError:
        return False


def _content(
    task: Task,
    standing: Standing,
    *,
    scaler: GradScaler | None,
    balancer: GradNormBalancer | None,
    sampler: MemoryAwareBatchSampler | None,
) -> dict[str, object]:
    return {
        "standing": standing.model_dump_json(),
        "model": task.model.state_dict(),
        "beside_model": [parameter.detach() for parameter in parameters_outside_model(task)],
        "optimizer": task.optimizer.state_dict(),
        "held_optimizers": [optimizer.state_dict() for optimizer in inner_optimizers(task.optimizer)],
        "scaler": None if scaler is None else scaler.state_dict(),
        "loss_weights": None if balancer is None else balancer.state_dict(),
        "sampler": None if sampler is None else sampler.state_dict(),
        "torch_generator": torch.get_rng_state(),
        "python_generator": random.getstate(),
        "numpy_generator": numpy_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def load_checkpoint(
    path: Path,
    task: Task,
    *,
    scaler: GradScaler | None = None,
    balancer: GradNormBalancer | None = None,
    sampler: MemoryAwareBatchSampler | None = None,
    extra_state: ExtraState | None = None,
) -> Standing:
    """Restore model, optimizer, scaler and generators from `path`. Return the progress of the training.

    `task` must already be on its device: the optimizer's state follows its parameters there.

    Raises:
        UsageError: the file does not exist, is not a checkpoint of batchcal, or is from a newer version, another model or another
            optimizer.
    """
    try:
        # Only tensors and plain values are unpickled.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint at {path}", try_="leave out --resume to start a new training") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise _unusable(path, "it cannot be read") from error
    if not isinstance(content, dict) or not isinstance(content.get("standing"), str):
        raise _unusable(path, "it was written by another program")
    try:
        standing = Standing.model_validate_json(content["standing"])
    except ValidationError as error:
        raise _unusable(path, f"its {'.'.join(map(str, error.errors()[0]['loc'])) or 'content'} is not valid") from error
    if standing.format > FORMAT:
        raise _unusable(path, f"it has format {standing.format}, and this version of batchcal reads formats up to {FORMAT}")
    try:
        if extra_state is not None:
            extra_state.make_room(content.get("beside_task"), content["model"])
        task.model.load_state_dict(content["model"])
        _restore_beside_model(task, content.get("beside_model"))
        _restore_optimizer(task.optimizer, content["optimizer"])
        _restore_inner_optimizers(task, content.get("held_optimizers"))
        if extra_state is not None:
            extra_state.restore(content.get("beside_task"))
        trained = content.get("trained_parameters")
        if isinstance(trained, list):
            restore_trained_parameters(task, [value for value in trained if isinstance(value, Tensor)])
        if scaler is not None and content["scaler"] is not None:
            scaler.load_state_dict(content["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        difference = _difference(error)
        # For example, the first forward pass of a model makes a parameter, which does not exist yet.
        hint = "; or create those parameters in the factory" if difference.startswith("Unexpected key") else ""
        raise UsageError(
            f"the checkpoint at {path} is from another model or optimizer",
            known=difference,
            try_=f"leave out --resume to start a new training{hint}",
        ) from error
    weights = content.get("loss_weights")
    if balancer is not None and isinstance(weights, dict):
        balancer.load_state_dict(weights)
    _restore_order(sampler, content.get("sampler"), standing, path)
    random.setstate(content["python_generator"])
    restore_numpy(content.get("numpy_generator"))
    torch.set_rng_state(content["torch_generator"])
    if torch.cuda.is_available() and len(content["cuda_generators"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(content["cuda_generators"])
    return standing


def _difference(error: Exception) -> str:
    """Return torch's reason in one line. The first line of its message only names the model."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return (lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict") else lines[0])[:300]


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, object]) -> None:
    """Raises:
    UsageError: the optimizer's own class cannot load what its `state_dict` returns.
    """
    try:
        optimizer.load_state_dict(state)
    except (AttributeError, NotImplementedError, KeyError) as error:
        if not why_not_resumable(optimizer):
            raise
        raise UsageError(
            f"{type(optimizer).__name__} cannot load its own state",
            known=f"{why_not_resumable(optimizer)} ({type(error).__name__}: {error})",
            try_="correct the class, then train without --resume: the state in the checkpoint is incomplete",
        ) from error


def why_not_resumable(optimizer: torch.optim.Optimizer) -> str:
    """Return the reason why the optimizer's class cannot load its own state. Empty: no such reason was detected."""
    kind = type(optimizer)
    if kind.load_state_dict is not torch.optim.Optimizer.load_state_dict:
        return ""
    if not hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks"):
        return f"{kind.__name__}.__init__ does not call super().__init__(params, defaults)"
    if kind.state_dict is not torch.optim.Optimizer.state_dict and "param_groups" not in optimizer.state_dict():
        return f"{kind.__name__} has its own state_dict(), but no load_state_dict() that reads it"
    return ""


def _restore_inner_optimizers(task: Task, states: object) -> None:
    """Raises:
    ValueError: the optimizer holds other optimizers. Checkpoints of earlier versions have no states of these.
    """
    optimizers = inner_optimizers(task.optimizer)
    if not isinstance(states, list):
        return
    if len(states) != len(optimizers):
        raise ValueError(
            f"the optimizer contains {len(optimizers)} other optimizers, but the checkpoint has the states of {len(states)}"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def _restore_beside_model(task: Task, values: object) -> None:
    """Raises:
    ValueError: the parameters differ from those that the optimizer holds. A checkpoint of format 1 has none.
    """
    parameters = parameters_outside_model(task)
    saved = [value for value in values if isinstance(value, Tensor)] if isinstance(values, list) else []
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if [tuple(value.shape) for value in saved] != shapes:
        raise ValueError(
            f"the optimizer has {len(shapes)} parameters that are not in the model; their number or their shapes differ from the "
            f"{len(saved)} in the checkpoint"
        )
    with torch.no_grad():
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.copy_(value)


def _restore_order(sampler: MemoryAwareBatchSampler | None, state: object, standing: Standing, path: Path) -> None:
    """Restore the order of samples. The samples of the epoch that are already trained depend on how batches are made."""
    if (sampler is not None) != isinstance(state, dict) and standing.samples:
        raise UsageError(
            f"{path} was saved in the middle of epoch {standing.epoch}, whose batches were made in another way",
            known=f"that epoch uses batches {'by the cost of samples' if isinstance(state, dict) else 'of shuffled samples'}",
            try_="the former [train] batching, or leave out --resume to start a new training",
        )
    if sampler is None:
        return
    if isinstance(state, dict):
        sampler.load_state_dict(state)
    else:
        sampler.epoch = standing.epoch


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} is not a checkpoint that can be resumed", known=reason, try_="leave out --resume to start a new training"
    )
