"""Check that the loss of a batch is the mean over its weight: compare a batch with its own weighted parts.

Gradients decide. A batch may be divided into micro-batches only if the weighted mean of the parts' gradients is the gradient of
the complete batch. The check makes the task unusable afterwards: its gradients, random numbers and buffers change.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_leaves

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.measure.inside.aligned_noise import AlignedNoise, Draws
from batchcal.measure.inside.mean_causes import COUPLED, KEEPS_STATE, MeanCause, Part, PartGradients, likely_cause, steps_within
from batchcal.measure.inside.model_state import ModelState, seed_all
from batchcal.measure.inside.own_training import observed_steps
from batchcal.measure.inside.random_losses import REPEATS, Differences
from batchcal.measure.inside.samples import Draw, Samples
from batchcal.workload.data.rows import rows_of
from batchcal.workload.model.normalization import batch_normalizations
from batchcal.workload.model.operators import OperatorWatch
from batchcal.workload.model.parameters import trained_parameters
from batchcal.workload.step import batch_weight, forward_backward, move
from batchcal.workload.task import Task

TOLERANCE: Final = 1e-4
"""Share of the gradient's norm. Rounding in float32 is 6e-8 to 1.8e-6 over the zoo and the examples
(tests.benchmarks.promise_checks); a token mean over texts whose lengths differ by 1 % is 3.7e-4 off."""
COARSE_TOLERANCE: Final = 3e-2
"""The same if the loss computes in a type of 8 to 11 bits (bfloat16, float16): an epsilon is 8e-3 and 1e-3."""
STATE_TOLERANCE: Final = 3e-2
"""The same between parts that start from the model's state before the batch and parts that follow each other. Each part makes
another power iteration of spectral norm, which changes a gradient by less."""
SPECTRAL_ITERATIONS: Final = 15
"""Number of iterations that torch.nn.utils.parametrizations.spectral_norm makes when it is built."""
COARSE: Final = frozenset({torch.float16, torch.bfloat16})
DRAWS: Final = 4
"""Different batches to check while there is time. Some faults appear in few batches only, for example a rare label."""
SEED: Final = 2_718_281
"""Every evaluation draws the same random numbers, if it draws any."""
RANDOM: Final = "the loss draws random numbers, so that a batch and its parts always differ; no other difference was found"


def check_mean(task: Task, samples: Samples, device: torch.device, *, unit: int, limit_s: float) -> PromiseCheck:
    """Compare batches of `samples` with their parts.

    Args:
        task: prepared for `device`, model in training mode.
        unit: every size is a multiple of it.
        limit_s: no further batch is checked after this many seconds. The first one is always checked.
    """
    start_s = time.monotonic()
    check = _Check(task, samples, device, unit)
    compared: list[PartGradients] = []
    why_not = ""
    with _forced_eager(), _full_precision():
        for number in range(DRAWS):
            if number and time.monotonic() - start_s >= limit_s:
                break
            divisions, why = check.divisions_of(number, until=start_s + limit_s)
            compared.extend(divisions)
            why_not = why_not or why
            if check.random is not None:
                break
    result = _judged(compared, check, why_not)
    return result.model_copy(update={"wall_s": round(time.monotonic() - start_s, 4)})


def _judged(divisions: Sequence[PartGradients], check: _Check, why_not: str) -> PromiseCheck:
    if check.stepped:
        return _violated(max((division.mismatch for division in divisions), default=None), steps_within(check.stepped))
    if check.random is not None:
        if not check.random.systematic:
            return PromiseCheck(promise="mean-over-weight", result="not-checked", cause=RANDOM)
        return _violated(check.random.mismatch, COUPLED)
    if not divisions:
        return PromiseCheck(promise="mean-over-weight", result="not-checked", cause=why_not or "no batch has a gradient")
    worst = max(divisions, key=lambda division: division.mismatch)
    if worst.mismatch <= check.tolerance:
        if check.carried > STATE_TOLERANCE:
            return _violated(check.carried, KEEPS_STATE)
        return PromiseCheck(promise="mean-over-weight", result="ok", mismatch=worst.mismatch)
    wrong = [division for division in divisions if division.mismatch > check.tolerance]
    cause = likely_cause(wrong, check.task, tolerance=check.tolerance)
    return _violated(worst.mismatch, cause)


def _violated(mismatch: float | None, cause: MeanCause) -> PromiseCheck:
    return PromiseCheck(promise="mean-over-weight", result="violated", mismatch=mismatch, cause=cause.text, fix=cause.fix)


def divisions_for(available: int, unit: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield sets of divisions to try, each of batches of one size: 3 + 5 and 1 + 7 of eight samples first; then even parts, for a
    task that refuses odd sizes, and smaller batches, for memory."""
    candidates: tuple[tuple[tuple[int, int], ...], ...] = (((3, 5), (1, 7)), ((2, 6), (4, 4)), ((1, 3), (2, 2)), ((1, 1),))
    for divisions in candidates:
        if sum(divisions[0]) * unit <= available:
            yield tuple((first * unit, second * unit) for first, second in divisions)


class _Refused(Exception):
    """The task's own code raised."""


class _NotAligned(Exception):
    """A batch and its parts draw random numbers that do not belong to their samples."""


class _Check:
    """Evaluations of one task: the mode that is comparable, and the data that is needed to repeat one."""

    def __init__(self, task: Task, samples: Samples, device: torch.device, unit: int) -> None:
        # Without autocast first: rounding then hides nothing.
        self.task = replace(task, autocast=None)
        self._autocast = task.autocast
        self._samples, self._device, self._unit = samples, device, unit
        self._parameters = [parameter for parameter in trained_parameters(task) if parameter.requires_grad]
        for layer in batch_normalizations(task.model):
            _set_fixed_statistics(layer, device)
        _settle_spectral_norms(task.model)
        self._state: ModelState | None = None
        self._keeps_state = False
        coarse = any(parameter.dtype in COARSE for parameter in self._parameters)
        self.tolerance = COARSE_TOLERANCE if coarse else TOLERANCE
        self._training: bool | None = None
        """True if training mode is comparable. None: not known yet."""
        self.random: Differences | None = None
        """Differences between batches and their parts, if neither mode can be repeated and the noise belongs to no sample. None:
        they can be compared one by one."""
        self._aligned = False
        """True if each sample has the same noise in the complete batch and in its part."""
        self._draws: Draws | None = None
        """Random operations of the latest evaluation, if noise is aligned."""
        self.stepped = ""
        """Type of an optimizer that makes a step within a pass. Empty: none does."""
        self.carried = 0.0
        """Mismatch of parts that follow each other, if the state is not restored before each."""

    def divisions_of(self, number: int, *, until: float) -> tuple[list[PartGradients], str]:
        """Return the divisions of draw `number`, and the reason if there are none."""
        why = "the training data has fewer than two samples"
        for divisions in divisions_for(self._samples.count, self._unit):
            size = sum(divisions[0])
            draw = self._samples.draw(size, number, of=DRAWS)
            try:
                complete = self._complete(draw)
            except _Refused as error:
                why = f"the task refuses a batch of {size}: {error}"
                continue
            if complete is None or not complete.norm:
                return [], f"a batch of {size} has no gradient"
            if not math.isfinite(complete.norm):
                return [], f"the gradient of a batch of {size} is NaN or infinite"
            if self.random is not None:
                return self._compare_random(draw, divisions, until=until)
            compared: list[PartGradients] = []
            for division in divisions:
                if compared and time.monotonic() >= until:
                    break
                try:
                    compared.append(PartGradients.of(complete, self._parts(draw, division)))
                except _Refused as error:
                    why = f"the task refuses batches of {division[0]} and {division[1]}: {error}"
                except _NotAligned:
                    self._aligned, self.random = False, Differences()
                    return self._compare_random(draw, divisions, until=until)
            if compared:
                if number == 0:
                    self.carried = self._carried(draw, divisions, complete, until=until)
                return compared, ""
        return [], why

    def _compare_random(
        self, draw: Draw, divisions: Sequence[tuple[int, int]], *, until: float
    ) -> tuple[list[PartGradients], str]:
        """Add differences with other random numbers each time, until there are enough or the time is over."""
        assert self.random is not None
        for number in range(0, 3 * REPEATS, 3):
            if self.random.count >= 2 and time.monotonic() >= until:
                break
            try:
                complete = self._evaluated(draw, 0, draw.size, seed=SEED + number)
                parts = self._parts(draw, divisions[0], seeds=(SEED + number + 1, SEED + number + 2))
            except _Refused as error:
                return [], f"the task refuses batches of {divisions[0][0]} and {divisions[0][1]}: {error}"
            if complete is not None:
                self.random.add(complete, parts)
        return [], RANDOM

    def _carried(self, draw: Draw, divisions: Sequence[tuple[int, int]], complete: Part, *, until: float) -> float:
        """Return the mismatch of parts if the second begins with the state that the first leaves. 0: there is no such state."""
        if not self._keeps_state:
            return 0.0
        half = draw.size // 2
        mismatch = 0.0
        for division in (*divisions, (half, draw.size - half)):
            if mismatch and time.monotonic() >= until:
                break
            # A hidden state of one size does not accept parts of two sizes.
            with contextlib.suppress(_Refused, _NotAligned):
                mismatch = max(mismatch, PartGradients.of(complete, self._parts(draw, division, restore_second=False)).mismatch)
        return mismatch

    def _complete(self, draw: Draw) -> Part | None:
        """Return the gradient of the complete batch, in a mode that can be repeated. None: there is none."""
        if self._training is None:
            self._settle(draw)
        try:
            return self._evaluated(draw, 0, draw.size)
        except _Refused:
            if self._autocast is None or self.task.autocast is not None:
                raise
            # Layers of a reduced type need autocast.
            self.task = replace(self.task, autocast=self._autocast)
            self.tolerance = COARSE_TOLERANCE
            return self._evaluated(draw, 0, draw.size)

    def _parts(
        self, draw: Draw, sizes: tuple[int, int], *, seeds: tuple[int, int] = (SEED, SEED), restore_second: bool = True
    ) -> tuple[Part, Part]:
        first, second = sizes
        draws_of_complete = self._draws
        first_part = self._evaluated(draw, 0, first, seed=seeds[0])
        draws_of_first = self._draws
        second_part = self._evaluated(draw, first, first + second, seed=seeds[1], restore=restore_second)
        if self._aligned and (
            draws_of_complete is None or draws_of_first != draws_of_complete or self._draws != draws_of_complete
        ):
            raise _NotAligned
        empty = Part(loss=0.0, weight=0.0, samples=0, rows=None, gradients=[None] * len(self._parameters))
        return first_part or replace(empty, samples=first), second_part or replace(empty, samples=second)

    def _settle(self, draw: Draw) -> None:
        """Choose the mode: training if it can be repeated, else evaluation, without dropout and noise."""
        self._training = True
        self._set_mode()
        self._state = ModelState(self.task, lambda: self._tried(draw))
        if self._repeats(draw) is not True:
            self._training = False
            # A task that fails in evaluation mode gives no information about it.
            if self._repeats(draw) is False:
                self._training = self._aligned = True
                if not self._repeats_aligned(draw):
                    self._aligned, self.random = False, Differences()
        self._keeps_state = self._state.changed()

    def _tried(self, draw: Draw) -> None:
        with contextlib.suppress(_Refused):
            watch = _Types()
            with watch:
                self._evaluated(draw, 0, draw.size)
            if watch.coarse:
                self.tolerance = COARSE_TOLERANCE

    def _repeats(self, draw: Draw) -> bool | None:
        """Return True if evaluations with other random numbers are equal: no dropout or noise is left. None: there are none."""
        try:
            first = self._evaluated(draw, 0, draw.size, seed=SEED)
            second = self._evaluated(draw, 0, draw.size, seed=SEED + 1)
        except _Refused:
            return None
        if first is None or second is None or not first.norm or not math.isfinite(first.norm + second.norm):
            return None
        return first.distance(second) <= self.tolerance * 0.1 * first.norm

    def _repeats_aligned(self, draw: Draw) -> bool:
        """Return True if two evaluations with the same noise are equal: none of it comes from a generator of the task."""
        try:
            first, second = self._evaluated(draw, 0, draw.size), self._evaluated(draw, 0, draw.size)
        except _Refused:
            return False
        return (
            first is not None and second is not None and self._draws is not None and first.distance(second) <= 1e-6 * first.norm
        )

    def _evaluated(self, draw: Draw, begin: int, end: int, *, seed: int = SEED, restore: bool = True) -> Part | None:
        """Return loss, weight and gradient of the samples from `begin` to `end`. None: their weight is 0."""
        self._set_mode()
        if restore and self._state is not None:
            self._state.restore()
        seed_all(seed)
        noise = AlignedNoise(draw.size, begin, end, seed=seed) if self._aligned else None
        try:
            with noise or contextlib.nullcontext(), observed_steps() as stepped:
                moved = move(draw.batch(begin, end), self._device)
                weight = batch_weight(self.task, moved, end - begin)
                loss = math.nan if weight == 0 else forward_backward(self.task, moved, weight=1.0, scaler=None)
        except Exception as error:
            for parameter in self._parameters:
                parameter.grad = None
            text = str(error).strip().splitlines()
            raise _Refused(f"{type(error).__name__}: {text[0][:200] if text else ''}".rstrip(": ")) from error
        if stepped:
            self.stepped = type(stepped[0]).__name__
        self._draws = None if noise is None else noise.draws()
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        if weight == 0:
            return None
        return Part(loss=loss, weight=weight, samples=end - begin, rows=rows_of(moved, end - begin), gradients=gradients)

    def _set_mode(self) -> None:
        model: nn.Module = self.task.model
        model.train(bool(self._training))
        if not self._training:
            return
        for module in model.modules():
            # Batch statistics are a separate promise.
            if isinstance(module, _BatchNorm):
                module.eval()
            elif isinstance(module, _DropoutNd):
                module.p = 0.0
            elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
                module.dropout = 0.0


def _set_fixed_statistics(layer: _BatchNorm, device: torch.device) -> None:
    """Give fixed statistics to a layer that keeps none: it would use those of the batch in evaluation mode, too."""
    if layer.running_mean is None or layer.running_var is None:
        layer.running_mean = torch.zeros(layer.num_features, device=device)
        layer.running_var = torch.ones(layer.num_features, device=device)


def _settle_spectral_norms(model: nn.Module) -> None:
    """Iterate until the estimates of `torch.nn.utils.spectral_norm` are stable, as they are after the first steps of a training.
    Each forward pass improves them, but they are not a state that the next loss depends on."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                with torch.no_grad():
                    for _ in range(SPECTRAL_ITERATIONS):
                        hook.compute_weight(module, do_power_iteration=True)


class _Types(OperatorWatch):
    """Detects operations that return a tensor of a reduced type, for example under a `torch.autocast` within the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = False

    def ran(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
        self.coarse = self.coarse or any(isinstance(leaf, Tensor) and leaf.dtype in COARSE for leaf in tree_leaves(result))


@contextlib.contextmanager
def _forced_eager() -> Iterator[None]:
    """Run compiled models as they were before compilation, which would take minutes."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Switch off TensorFloat-32. It rounds to 10 bits, which is as coarse as the faults to detect."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
