"""Examines the task in children of its own: facts, static shapes, a tiny step, the promises, the sizes that run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

from pydantic import ValidationError

from batchcal.calibration.records.promises import PromiseCheck, PromiseName
from batchcal.calibration.schema import Mode
from batchcal.core.errors import GuardError
from batchcal.core.units import count_of
from batchcal.guard.channel.wire import Message
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Infrastructure, OutOfMemory
from batchcal.measure.children import answers
from batchcal.measure.children.examine_job import Curve, ExamineArguments, examine
from batchcal.measure.children.probe import Examination
from batchcal.measure.children.runner import ChildRunner
from batchcal.measure.children.scout_job import ScoutArguments, scout
from batchcal.measure.children.setting import ChildSetting
from batchcal.measure.inside.promise_job import PromiseAnswer, PromiseArguments, check_promises
from batchcal.measure.outcomes import described

CURVE_LIMIT_S: Final = 20.0
CURVE_SHARE: Final = 0.3
"""Share of the remaining time for a static curve. After that, a simpler curve replaces it."""
CURVES: Final[tuple[Curve, ...]] = ("traced", "profiled", "assumed")
PROMISE_SAMPLES: Final = (64, 2)
"""Number of samples to choose batches from. The second value is for a single batch, which is divided into 1 + 1."""
PROMISES_LIMIT_S: Final = 10.0
PROMISES_SHARE: Final = 0.1
"""Share of the remaining time. Checks end by themselves after half a second, unless a first batch takes longer."""
PROMISES_LEAST_S: Final = 4.0
"""Minimum time, at most half of the remaining time. On two cores with seven busy processes, the check of a small autoencoder was
stopped after 1 s, and a batch with a sum as its loss was divided."""
SCOUT_GRACE_S: Final = 5.0
"""Extra time to finish a size that has started."""
OUTPUT_SHOWN: Final = 8_000
"""Number of characters of the task's output to show: one or two screens."""


def promises_limit_s(left_s: float) -> float:
    """Return the seconds that the check of promises may take, if `left_s` seconds remain in total."""
    return min(PROMISES_LIMIT_S, max(left_s * PROMISES_SHARE, min(PROMISES_LEAST_S, left_s / 2)))


@dataclass
class Examiner:
    """Examinations so far, by device."""

    runner: ChildRunner
    settings: dict[str, ChildSetting]
    """Setting of all children of a device. An examination changes it if two samples need too much memory."""
    host_budget_bytes: int
    printed: Callable[[str], None] = lambda text: None
    """Called with the end of the task's output in its first examination."""
    examined: dict[str, Examination] = field(default_factory=dict)
    """Examination by device, under any policy."""
    orders: dict[tuple[str, Mode], tuple[int, ...]] = field(default_factory=dict)
    """Indices of the largest samples by device and mode."""
    _kept_memory: answers.KeptMemory | None = None
    """Memory kept by the dataset in the last examination."""

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        """Load the task once in a child and return its facts, its static shapes, and the memory of a tiny step. See `Probe`."""
        known = self.examined.get(device)
        self.runner.make_room(allocator, None if known is None else known.base_bytes)
        arguments = ExamineArguments(
            setting=self.settings[device],
            budget_bytes=budget_bytes,
            limit_s=limit_s,
            known=known,
            order=self.orders.get((device, "train")),
        )
        ending = self._examination(arguments, allocator)
        if not ending.has_result:
            torch_bytes = self.runner.shared_bytes(allocator)
            raise answers.failure(ending, self.host_budget_bytes, self._kept_memory, torch_bytes=torch_bytes)
        value = ending.returned if isinstance(ending.returned, dict) else {}
        try:
            examination = Examination.model_validate(value.get("examination"))
        except ValidationError as error:
            detail = count_of(error.error_count(), "invalid field")
            raise GuardError("the examination of the task returned no usable answer", known=detail) from error
        if not self.examined and ending.output.strip():
            self.printed(ending.output.strip()[-OUTPUT_SHOWN:])
        if device not in self.examined:
            examination = examination.model_copy(update={"promises": self._promises(device, allocator)})
            self.examined[device] = examination
            for mode in get_args(Mode):
                order = value.get(mode)
                if isinstance(order, list):
                    self.orders[device, mode] = tuple(index for index in order if isinstance(index, int))
        return examination

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        """Try all sizes in one child. See `Probe`."""
        self.runner.make_room(allocator, None)
        ran: list[int] = []

        def listen(message: Message) -> None:
            size = message.get("ran")
            if isinstance(size, int):
                ran.append(size)

        arguments = ScoutArguments(setting=self.settings[device], sizes=tuple(sizes), limit_s=limit_s)
        limits = self.runner.limits(allocator, limit_s + SCOUT_GRACE_S)
        self.runner.run(scout, arguments.model_dump(mode="json"), allocator, limits, listen=listen)
        return tuple(ran)

    def _examination(self, arguments: ExamineArguments, allocator: str) -> Ending:
        """Examine the task and return how the child ended. Repeat with a simpler curve if the curve failed, and with one sample
        if two did not fit."""
        ending = self._examine_once(arguments, allocator)
        setting = arguments.setting
        if ran_out(ending) and ending.phase == "warm-up" and setting.smallest_batch == 2 and setting.multiple_of == 1:
            single = setting.model_copy(update={"smallest_batch": 1})
            retry = self._examine_once(arguments.model_copy(update={"setting": single}), allocator)
            if retry.has_result or retry.phase == "measure":
                arguments, ending = arguments.model_copy(update={"setting": single}), retry
                self.settings[single.device] = single
        for curve in CURVES[1:]:
            # After the first real steps: the model without memory or the profiler crashed, hung, or needed too much itself.
            if ending.has_result or ending.phase != "measure" or ending.limit_name:
                break
            ending = self._examine_once(arguments.model_copy(update={"curve": curve}), allocator)
        return ending

    def _examine_once(self, arguments: ExamineArguments, allocator: str) -> Ending:
        begin = self.runner.take_expected()
        measure_s = min(CURVE_LIMIT_S, self.runner.left_s * CURVE_SHARE)
        limits = self.runner.limits(allocator, measure_s, launchers_start=begin is not None)

        def listen(message: Message) -> None:
            if begin is not None and message.get("timed") is True:
                begin()
            with contextlib.suppress(ValidationError):
                self._kept_memory = answers.KeptMemory.model_validate(message)

        self._kept_memory = None
        return self.runner.run(examine, arguments.model_dump(mode="json"), allocator, limits, listen=listen)

    def _promises(self, device: str, allocator: str) -> tuple[PromiseCheck, ...]:
        """Check the promises of the task in a child of its own: a failure does not affect the examination. Repeat with two
        samples if eight need more memory than there is."""
        promises: tuple[PromiseCheck, ...] = ()
        for samples in PROMISE_SAMPLES:
            arguments = PromiseArguments(setting=self.settings[device], samples=samples)
            promises, ran_short = self._promises_of(arguments, allocator)
            if not ran_short:
                break
        return promises

    def _promises_of(self, arguments: PromiseArguments, allocator: str) -> tuple[tuple[PromiseCheck, ...], bool]:
        """Return the checks of one child, including those reported before it died, and True if it needed too much memory."""
        reported: list[PromiseCheck] = []

        def listen(message: Message) -> None:
            with contextlib.suppress(ValidationError):
                reported.append(PromiseCheck.model_validate(message.get("promise")))

        limits = self.runner.limits(allocator, promises_limit_s(self.runner.left_s))
        ending = self.runner.run(check_promises, arguments.model_dump(mode="json"), allocator, limits, listen=listen)
        with contextlib.suppress(ValidationError):
            return PromiseAnswer.model_validate(ending.returned).promises, False
        outcome = classify(ending, lambda value: Infrastructure(detail="no usable answer"))
        names: tuple[PromiseName, ...] = ("mean-over-weight", "batch-statistics")
        missing = [name for name in names if name not in {check.promise for check in reported}]
        unchecked = (PromiseCheck(promise=name, result="not-checked", cause=described(outcome)) for name in missing)
        return (*reported, *unchecked), isinstance(outcome, OutOfMemory)


def ran_out(ending: Ending) -> bool:
    """True if the child ran out of memory."""
    return isinstance(classify(ending, lambda value: Infrastructure(detail="")), OutOfMemory)
