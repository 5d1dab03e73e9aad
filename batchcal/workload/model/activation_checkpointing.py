"""Activation checkpointing: what some modules compute is thrown away after the forward pass, and computed again in the backward.

It trades time for memory (Chen et al. 2016, arXiv:1604.06174): each of n like layers then keeps its input alone. What it brings
is measured here and not promised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from batchcal.core.errors import UsageError
from batchcal.guard.children.release import trim
from batchcal.machine.peak_meter import PeakMeter

AUTO: Final = "auto"
ROUNDS: Final = 5


@dataclass(frozen=True)
class CheckpointingCost:
    """Memory saved and time lost by checkpointing, from steps that alternate between on and off."""

    saved_bytes: int
    """Smallest peak without checkpointing minus the smallest peak with it. Negative: it took more memory."""
    saved_share: float
    """The same as a share of what a step takes beyond what is held before it."""
    time_share: float
    """Additional time of a step, as a share: the median over pairs. 0.15 is 15 %."""


class GradientCheckpointManager:
    """Turn activation checkpointing of some modules of a model on and off; as a context it is on.

    The parameters, their names, the `state_dict` and the gradients do not change: random numbers, for example of dropout, are the
    same in the second computation. Without gradients, as in an evaluation, it has no effect.

        with GradientCheckpointManager(model, "encoder.layers") as manager:
            print(manager.measure(step, torch.device("cpu")))
            train(task, plan)

    Args:
        modules: names, separated by commas. A list (`nn.ModuleList`, `nn.Sequential`) means all modules in it. `auto`: the list
            of similar modules that has most of the parameters.

    Raises:
        UsageError: a module does not exist, or has BatchNorm, whose running statistics would count each batch twice.
    """

    def __init__(self, model: nn.Module, modules: str = AUTO) -> None:
        self.names: tuple[str, ...] = tuple(_named(model, modules))
        self._modules = [model.get_submodule(name) for name in self.names]
        for name, module in zip(self.names, self._modules, strict=True):
            if any(isinstance(inner, _BatchNorm) for inner in module.modules()):
                raise UsageError(
                    f"{name} has BatchNorm and cannot be computed twice: its running statistics would count every batch twice",
                    try_="--activation-checkpointing with modules that have no BatchNorm",
                )
        self.enabled = False

    def enable(self) -> None:
        """From the next forward pass on."""
        if self.enabled:
            return
        for module in self._modules:
            # An attribute of the object goes before the method of its class; __call__ and hooks stay what they are.
            vars(module)["forward"] = partial(_run, module.forward)
        self.enabled = True

    def disable(self) -> None:
        """From the next forward pass on."""
        if not self.enabled:
            return
        for module in self._modules:
            replaced = vars(module).pop("forward")
            if replaced.args[0] != module.forward:  # it had one of its own before
                vars(module)["forward"] = replaced.args[0]
        self.enabled = False

    def __enter__(self) -> Self:
        self.enable()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.disable()

    def measure(self, step: Callable[[], object], device: torch.device, *, rounds: int = ROUNDS) -> CheckpointingCost:
        """Run `step`, a complete training step, alternately without and with checkpointing, and restore the current state.

        Host memory is the high-water mark of the kernel, after free blocks were returned. It is accurate enough if a step takes
        some tens of MiB.
        """
        before = self.enabled
        peaks: dict[bool, list[int]] = {False: [], True: []}
        took: dict[bool, list[float]] = {False: [], True: []}
        base = 0
        try:
            for number in range(rounds + 1):
                for on in (False, True):
                    self.enable() if on else self.disable()
                    trim()
                    meter = PeakMeter(device)
                    meter.begin()
                    start_bytes, start_s = meter.end(), time.perf_counter()
                    step()
                    if device.type != "cpu":
                        torch.accelerator.synchronize(device)
                    if number:  # the first of each warms up
                        took[on].append(time.perf_counter() - start_s)
                        peaks[on].append(meter.end())
                        base = start_bytes
        finally:
            self.enable() if before else self.disable()
        without, with_it = min(peaks[False]), min(peaks[True])
        return CheckpointingCost(
            saved_bytes=without - with_it,
            saved_share=(without - with_it) / max(1, without - base),
            time_share=statistics.median(on / off for on, off in zip(took[True], took[False], strict=True)) - 1,
        )


def _run(forward: Callable[..., object], *args: object, **kwargs: object) -> object:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    result: object = checkpoint(partial(forward, **kwargs), *args, use_reentrant=False)
    return result


def _named(model: nn.Module, modules: str) -> Iterator[str]:
    requested = [_largest_list(model)] if modules == AUTO else [name.strip() for name in modules.split(",")]
    for name in dict.fromkeys(requested):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            lists = ", ".join(sorted(_lists(model))) or "none"
            raise UsageError(
                f"{type(model).__name__} has no module {name!r}",
                known=f"its lists of modules: {lists}",
                try_="--activation-checkpointing auto, or one of these names",
            ) from None
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module):
            yield from (f"{name}.{place}" if name else place for place, _ in module.named_children())
        else:
            yield name


def _lists(model: nn.Module) -> dict[str, nn.Module]:
    """By name: lists of two modules or more of one class that have parameters."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) > 1
        and len({type(child) for child in module}) == 1
        and any(True for _ in module.parameters())
    }


def _largest_list(model: nn.Module) -> str:
    sizes = {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in _lists(model).items()}
    if not sizes:
        raise UsageError(
            f"{type(model).__name__} has no list of similar modules whose activations could be computed again",
            try_="--activation-checkpointing NAME, the name of a module (see model.named_modules())",
        )
    return max(sizes, key=lambda name: sizes[name])
