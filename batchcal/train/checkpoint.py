"""Where a training stands, on disk: written beside and renamed, read without running what is in it."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from torch.amp.grad_scaler import GradScaler

from batchcal.core.errors import NotSaved, UsageError
from batchcal.core.files import sync_folder
from batchcal.core.values import Record
from batchcal.train.data.sampler import MemoryAwareBatchSampler
from batchcal.train.multitask.gradnorm import GradNormBalancer
from batchcal.train.result import EpochResult
from batchcal.train.seed import numpy_state, restore_numpy
from batchcal.workload.task import Task

# Format history
# 1 - (0.1) first version
FORMAT: Final = 1


class Standing(Record):
    """How far a training is, apart from tensors."""

    format: int = FORMAT
    seed: int
    effective_batch: int
    train_samples: int | None
    """None: a stream."""
    epoch: int
    """The one that is going on, or begins next; from 0."""
    group: int
    """Optimizer steps done in it."""
    steps: int = 0
    """Optimizer steps in all epochs."""
    weighted_loss: float = 0.0
    """Of those steps: sum of loss x weight."""
    weight: float = 0.0
    samples: int = 0
    """Trained in this epoch: where a resumed run goes on, whatever its steps are made of."""
    wall_s: float = 0.0
    """Seconds spent on those steps."""
    history: tuple[EpochResult, ...] = ()
    """The epochs before."""


def save_checkpoint(
    path: Path,
    task: Task,
    standing: Standing,
    *,
    scaler: GradScaler | None = None,
    balancer: GradNormBalancer | None = None,
    sampler: MemoryAwareBatchSampler | None = None,
) -> None:
    """Write model, optimizer, scaler, the generators' states and `standing`; an earlier checkpoint stays until it is complete.

    Tensors go to the file one by one: no second copy of the model is held in memory.

    Raises:
        NotSaved: disk full, read-only, no right; the earlier checkpoint is untouched.
    """
    # One name for every attempt: what a killed writer left is overwritten by the next.
    temporary = path.with_name(f".{path.name}.partial")
    content = {
        "standing": standing.model_dump_json(),
        "model": task.model.state_dict(),
        "optimizer": task.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "loss_weights": None if balancer is None else balancer.state_dict(),
        "sampler": None if sampler is None else sampler.state_dict(),
        "torch_generator": torch.get_rng_state(),
        "python_generator": random.getstate(),
        "numpy_generator": numpy_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch tells a full disk by a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise NotSaved(
            f"the checkpoint could not be written to {path}",
            known=str(error).strip().splitlines()[0],
            try_="--checkpoint FILE, on a disk with room",
        ) from error


def load_checkpoint(
    path: Path,
    task: Task,
    *,
    scaler: GradScaler | None = None,
    balancer: GradNormBalancer | None = None,
    sampler: MemoryAwareBatchSampler | None = None,
) -> Standing:
    """Put model, optimizer, scaler and generators back to where `path` has them; returns how far the training was.

    `task` must be on its device already: the optimizer's state follows its parameters there.

    Raises:
        UsageError: no such file, no checkpoint of ours, of a newer version, or of another model or optimizer.
    """
    try:
        # Nothing but tensors and plain values is unpickled.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint at {path}", try_="without --resume to begin anew") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise _unusable(path, "it cannot be read") from error
    if not isinstance(content, dict) or not isinstance(content.get("standing"), str):
        raise _unusable(path, "it was written by another program")
    try:
        standing = Standing.model_validate_json(content["standing"])
    except ValidationError as error:
        raise _unusable(path, f"its {error.errors()[0]['loc']} is not understood") from error
    if standing.format > FORMAT:
        raise _unusable(path, f"it has format {standing.format}, this version reads up to {FORMAT}")
    try:
        task.model.load_state_dict(content["model"])
        task.optimizer.load_state_dict(content["optimizer"])
        if scaler is not None and content["scaler"] is not None:
            scaler.load_state_dict(content["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"the checkpoint at {path} is of another model or optimizer", known=first, try_="without --resume to begin anew"
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


def _restore_order(sampler: MemoryAwareBatchSampler | None, state: object, standing: Standing, path: Path) -> None:
    """Which samples of the epoch have been trained depends on how batches are made."""
    if (sampler is not None) != isinstance(state, dict) and standing.samples:
        raise UsageError(
            f"{path} stands in the middle of epoch {standing.epoch}, whose batches were made another way",
            known="by cost" if isinstance(state, dict) else "as shuffled",
            try_="the former [train] batching, or without --resume to begin anew",
        )
    if sampler is None:
        return
    if isinstance(state, dict):
        sampler.load_state_dict(state)
    else:
        sampler.epoch = standing.epoch


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is no checkpoint that can be resumed", known=why, try_="without --resume to begin anew")
