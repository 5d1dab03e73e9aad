"""The first steps of a task: whether it learns from its batches, and the samples that it learns from.

If few samples of a task have a label, some small batches have no gradient. This is no error, but a probe of such a batch would
not run a backward pass. The samples of a batch that has a gradient therefore come first in all later probes.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import torch

from batchcal.core.errors import UserCodeError
from batchcal.core.units import count_of
from batchcal.measure.inside.own_training import LossWithoutTraining
from batchcal.measure.inside.subject import Subject
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, SampleShare, run_group
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.model.hooks import takes_gradients
from batchcal.workload.model.loss_error import LossIsNoNumber
from batchcal.workload.model.not_finite import require_finite
from batchcal.workload.step import clear_gradients, move

LOOK_LIMIT: Final = 256
"""Maximum number of batches to try. With a label on one sample in 100, 256 batches of four have none in one case of 30,000."""
LOOK_LIMIT_S: Final = 6.0
"""Limit of the attempts, seconds. Each may load its samples slowly."""
IN_ORDER: Final = 16
"""Number of batches of the largest samples. Then random ones are tried, because labels often lie together."""
DETACHED: Final = 4
"""Number of different losses without a gradient that is enough: they are computed from the model, and detached. Batches without a
label give one constant."""

Lesson = Literal["gradient", "no-weight", "no-gradient", "zero-gradient", "not-finite"]


@dataclass(frozen=True)
class FirstSteps:
    """The result of the first steps."""

    tried: int
    """Number of batches."""
    size: int
    lessons: Counter[Lesson]
    cause: str
    """Reason of a loss that is not finite. Empty: all are finite."""

    def batches(self) -> str:
        """Return a text such as `3 batches of 4 samples`."""
        return f"{self.tried} batch{'' if self.tried == 1 else 'es'} of {count_of(self.size, 'sample')}"

    def notes(self) -> tuple[str, ...]:
        """Return notes for the user."""
        notes: list[str] = []
        if count := self.lessons["not-finite"]:
            notes.append(
                f"the loss of {count} of {self.batches()} is NaN or infinite: {self.cause}. A training stops at such a batch"
            )
        if self.lessons["gradient"] == 0 and (count := self.lessons["zero-gradient"]):
            notes.append(f"the gradient of the loss is zero in {count} of {self.batches()}: the model learns nothing from them")
        return tuple(notes)


def first_steps(subject: Subject, worst: WorstCase, size: int, *, one_size: bool = False) -> FirstSteps:
    """Run steps on batches of `size` of the largest samples until one has a gradient. Its samples then lead `worst.order`.

    Args:
        one_size: this process runs batches of no other size.

    Raises:
        UserCodeError: no batch has a weight, no loss depends on a parameter, or the loss trains. Errors of the user's code pass
            through.
    """
    subject = replace(subject, task=replace(subject.task, loss=LossWithoutTraining(subject.task)))
    end_s = time.monotonic() + LOOK_LIMIT_S
    lessons: Counter[Lesson] = Counter()
    constants: set[float] = set()
    cause = ""
    tried = 0
    for places in _chunks(worst, size):
        step = _learned(subject, worst, places, explained=bool(cause))
        lessons[step.lesson] += 1
        cause = cause or step.cause
        tried += 1
        if step.lesson == "gradient":
            if tried > 1:
                _lead(worst, places if one_size else _narrowed(subject, worst, places))
            break
        if step.lesson == "no-gradient":
            constants.add(step.loss)
        if len(constants) >= DETACHED or time.monotonic() > end_s:
            break
    result = FirstSteps(tried, size, lessons, cause)
    if lessons.keys() <= {"no-weight", "no-gradient"}:
        raise _nothing_to_learn(subject, result)
    return result


def _chunks(worst: WorstCase, size: int) -> list[Sequence[int]]:
    order = worst.order
    starts = range(size, len(order) - size + 1, size)
    near, far = starts[: IN_ORDER - 1], starts[IN_ORDER - 1 :]
    chosen = random.Random(0).sample(far, min(len(far), LOOK_LIMIT - IN_ORDER))
    return [worst.indices(size), *(order[at : at + size] for at in (*near, *chosen))]


class _Step(NamedTuple):
    lesson: Lesson
    loss: float = 0.0
    cause: str = ""
    """Reason, if the loss is not finite."""


def _learned(subject: Subject, worst: WorstCase, places: Sequence[int], *, explained: bool = False) -> _Step:
    """Run a step on the samples at `places` and return its effect.

    Args:
        explained: the cause is known. To find it takes a forward pass that inspects every operation.
    """
    batch = MicroBatch(worst.batch_at(places), len(places))
    try:
        result = run_group(
            subject.task,
            [batch],
            device=subject.device,
            scaler=subject.scaler,
            clear_first=True,
            guard=_Finite(subject, explained=explained),
            max_norm=math.inf,
        )
    except LossIsNoNumber as error:
        clear_gradients(subject.task)
        return _Step("not-finite", cause=f"{error.known.partition(';')[0]} (try: {error.try_})")
    if result.skipped is not None and result.skipped != "overflow":
        return _Step(result.skipped, result.loss)
    return _Step("zero-gradient" if result.grad_norm == 0 else "gradient", result.loss)


class _Finite:
    """A guard that keeps gradients of a NaN loss from the parameters: all later losses would be NaN."""

    def __init__(self, subject: Subject, *, explained: bool) -> None:
        self._subject, self._explained = subject, explained and subject.scaler is None

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
        share = passes.run(micro_batch)
        if not math.isfinite(share.weighted_loss):
            if self._explained:
                raise LossIsNoNumber("the loss is NaN or infinite")
            batch = move(micro_batch.batch, self._subject.device)
            require_finite(self._subject.task, batch, micro_batch.samples, share.weighted_loss)
        return share

    def before_update(self) -> None:
        return None


def _narrowed(subject: Subject, worst: WorstCase, places: Sequence[int]) -> Sequence[int]:
    """Return the half of `places` that has a gradient, then the half of that, as far as the task accepts so few samples."""
    while len(places) > 1:
        middle = len(places) // 2
        for half in (places[:middle], places[middle:]):
            try:
                lesson = _learned(subject, worst, half).lesson
            except Exception:  # noqa: BLE001 - the size is refused, which is no fault
                clear_gradients(subject.task)
                return places
            if lesson == "gradient":
                places = half
                break
        else:
            return places
    return places


def _lead(worst: WorstCase, places: Sequence[int]) -> None:
    first = set(places)
    worst.order = (*places, *(place for place in worst.order if place not in first))


def _nothing_to_learn(subject: Subject, steps: FirstSteps) -> UserCodeError:
    batches = steps.batches()
    if steps.lessons["no-gradient"] and takes_gradients(subject.task):
        return UserCodeError(
            "a hook removes the gradients before batchcal can use them",
            known=f"in {batches} no parameter had a gradient after the backward pass, and parameters have hooks of "
            "register_post_accumulate_grad_hook: an optimizer step in the backward pass would update the parameters after each "
            "micro-batch",
            try_="remove these hooks: batchcal steps Task(optimizer=...) once per effective batch",
        )
    if not torch.is_grad_enabled():
        return UserCodeError(
            "gradients are switched off in this process",
            known="the module or the factory called torch.set_grad_enabled(False), or entered torch.no_grad() and never left it",
            try_="remove that line; for an evaluation, `with torch.no_grad():` around it alone",
        )
    if steps.lessons["no-gradient"]:
        return UserCodeError(
            "no gradient flows back from the loss",
            known=f"in {batches} the loss depended on no parameter that requires a gradient: it is detached, computed under "
            "torch.no_grad() or constant, or all parameters are frozen",
            try_="compute the loss from model(...) itself, and keep requires_grad=True for at least one parameter",
        )
    if subject.task.weight_of is not None:
        return UserCodeError(
            f"weight_of returned 0 for each of {batches}",
            known="a batch of weight 0 adds nothing to its group: there is nothing to train on",
            try_="let weight_of return the number of elements that the loss is a mean over, such as float(mask.sum())",
        )
    return UserCodeError(
        f"the collate function left no sample in any of {batches}",
        known="samples that are None, and samples that the collate function drops, do not count: there is nothing to train on",
        try_="check the path of the data and the value of train_data[0]",
    )
