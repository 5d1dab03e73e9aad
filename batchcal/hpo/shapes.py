"""Calibrations by shape of the model. Each is measured once on a machine and then used by every trial of that shape."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from batchcal.calibration.fingerprint import NOT_IDENTIFYING
from batchcal.calibration.records.shape import ShapeEstimate
from batchcal.calibration.schema import Calibration, Options
from batchcal.core.canonical import JSON, dumps
from batchcal.core.errors import BatchcalError, NoCalibration, NothingFits, NotSaved, Partial, UsageError, UserCodeError
from batchcal.core.progress import Notice, Progress, Silent
from batchcal.core.units import format_bytes
from batchcal.detect.environment import Environment
from batchcal.hpo.search.space import BATCH_SIZE, Space, Values, shape_of
from batchcal.machine.allocator import AUTO
from batchcal.measure.budget import host_budget_of
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.obtain import obtain
from batchcal.measure.result import Need
from batchcal.measure.shapes.shapes import estimate_shapes
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.values.calibration_events import CalibrationEvent
from batchcal.values.study_events import ShapeCalibrated, ShapeStarted, WorkerEvent
from batchcal.workload.spec.identity import identify
from batchcal.workload.spec.reference import Scalar, TaskReference

PROCESS_BYTES: Final = 200 << 20
"""Least memory of a process with torch before its model, bytes. Measured: 215-250 MB."""
PATIENCE_FACTOR: Final = 5
"""Factor on the time for a shape, if that was too short for a useful result."""
AT_ONCE: Final = 64
"""Samples. A micro-batch of this size is large enough, even if time ran out: it spreads the fixed cost of a step sufficiently."""
RACE_S: Final = 30.0
"""Least seconds for the one calibration that races allocator policies: four zygotes start, and each imports torch."""


@dataclass(frozen=True)
class Fitting:
    """A shape that trains here."""

    plan: Plan
    calibration: Path
    parameters: int
    memory_limit_bytes: int | None
    """Largest host memory of the training, bytes: the budget of its plan, and the margin. None: it trains on an accelerator."""
    measured: bool
    """True if this call measured the calibration. False: it existed."""


@dataclass(frozen=True)
class TooLarge:
    """A shape that does not fit with even one sample, or that has more parameters than the study allows."""

    excess: float
    """Excess as a share of the allowed size, above 0. It is passed to the sampler, so that it samples elsewhere."""
    why: str
    parameters: int | None = None
    of_batch: bool = False
    """True: the effective batch is too large, the shape is not."""


@dataclass
class ShapeBook:
    """Known shapes of one study's model, on this machine."""

    reference: TaskReference
    """The task, without sampled values."""
    options: Options
    """Options of each calibration."""
    environment: Environment
    folder: Path
    most_trained: int | None = None
    """Largest requested effective batch."""
    launchers: Launchers | None = None
    """Launchers of the children, also for trials: a process that has imported torch takes 230 MB and some seconds to start."""
    neighbours: bool = False
    """True if other workers run in the same memory group."""
    budget_parameters: int | None = None
    progress: Progress[WorkerEvent] = field(default_factory=Silent)
    _refused: dict[str, TooLarge] = field(default_factory=dict)
    _failed: dict[str, BatchcalError] = field(default_factory=dict)
    _traced: dict[str, ShapeEstimate] = field(default_factory=dict)
    _allocator: str | None = None

    def plan_trial(self, space: Space, values: Values, effective_batch: int) -> Fitting | TooLarge:
        """Call `plan` for the sampled `values` of a trial.

        Args:
            effective_batch: samples per optimizer step if the space has no batch size.
        """
        batch = values.get(BATCH_SIZE)
        return self.plan(shape_of(space, values), batch if isinstance(batch, int) else effective_batch)

    def plan(self, shape: Mapping[str, Scalar], effective_batch: int) -> Fitting | TooLarge:
        """Plan the training of a model of `shape` with exactly `effective_batch` samples per step.

        Another process that requests the same shape at the same time waits for the one that measures.

        Raises:
            UsageError: the factory does not accept an argument.
            UserCodeError, Partial, GuardError: the shape could not be calibrated; see `measure.obtain`.
        """
        key = self._key(shape)
        if key in self._refused:
            return self._refused[key]
        if key in self._failed:
            raise self._failed[key]
        traced = self._trace(key, shape)
        refused = self._refusal(traced)
        if refused is None:
            try:
                fitting = self._measured(key, shape, effective_batch, traced)
            except (UserCodeError, Partial) as error:
                # Another attempt would take as long and fail again.
                self._failed[key] = error
                raise
            if isinstance(fitting, Fitting):
                return fitting
            refused = fitting
        if not refused.of_batch:
            self._refused[key] = refused
        return refused

    def _key(self, shape: Mapping[str, Scalar]) -> str:
        """Return a name for all inputs of the calibration, except machine and code, which the calibration itself records."""
        arguments: dict[str, JSON] = {**self.reference.arguments, **shape}
        options: dict[str, JSON] = self.options.model_dump(mode="json", exclude=set(NOT_IDENTIFYING))
        inputs: dict[str, JSON] = {"spec": self.reference.spec, "arguments": arguments, "options": options}
        if self.most_trained is not None:
            inputs["most_trained"] = self.most_trained
        return hashlib.sha256(dumps(inputs)).hexdigest()[:16]

    def _trace(self, key: str, shape: Mapping[str, Scalar]) -> ShapeEstimate:
        """Return the estimated needs of a step, without running one. Read them from the file of an earlier run if it exists."""
        if key not in self._traced:
            # The name depends on the code, too: a calibration shows whether it is still valid, a parameter count does not.
            path = self.folder / f"{key}-{identify(self._with(shape)).digest[:12]}.trace.json"
            try:
                self._traced[key] = ShapeEstimate.model_validate_json(path.read_bytes())
            except (OSError, ValueError):
                try:
                    (traced,) = estimate_shapes(
                        self._with(shape),
                        (),
                        seed=self.options.seed,
                        batches=(),
                        progress=self.progress,
                        launchers=self.launchers,
                        neighbours=self.neighbours,
                    )
                except UsageError as error:
                    raise UsageError(
                        error.what,
                        known=error.known,
                        try_="use the argument names of the factory in [hpo.space] and [task.args]",
                    ) from None
                self._traced[key] = traced
                if traced.parameters > 0:  # otherwise the trace failed this time
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(traced.model_dump_json(), encoding="utf-8")
        return self._traced[key]

    def _refusal(self, traced: ShapeEstimate) -> TooLarge | None:
        """Refuse shapes that need not be tried."""
        most = self.budget_parameters
        if most is not None and traced.parameters > most:
            return self._too_many(traced.parameters)
        budget = host_budget_of(self.environment, self.options).budget_bytes
        # During the optimizer step, all of these are in memory.
        rest = PROCESS_BYTES + traced.static_bytes + traced.gradient_bytes
        on_host = self.options.device == "cpu" or (self.options.device == "auto" and not self.environment.accelerators)
        if on_host and rest > budget:
            return TooLarge(
                rest / max(budget, 1) - 1,
                f"the model with gradients and optimizer needs {format_bytes(rest)}; the budget is {format_bytes(budget)}",
                traced.parameters,
            )
        return None

    def _too_many(self, parameters: int) -> TooLarge:
        most = self.budget_parameters or 1
        return TooLarge(parameters / most - 1, f"{parameters:,} parameters, the study allows {most:,}", parameters)

    def _measured(self, key: str, shape: Mapping[str, Scalar], effective_batch: int, traced: ShapeEstimate) -> Fitting | TooLarge:
        path = self.folder / f"{key}.json"
        options = self.options.model_copy(update={"allocator": self._policy()})
        try:
            calibration, measured = self._calibrated_patiently(shape, options, path, effective_batch)
        except NothingFits as error:
            return TooLarge(1.0, error.what, traced.parameters)
        except DivisionRefused as error:
            return TooLarge(1.0, error.what, traced.parameters, of_batch=True)
        if measured:
            if _was_cut_short(calibration, effective_batch):
                text = f"{_shape_text(shape)}: only small micro-batches were measured before the time limit"
                self.progress.event(Notice(f"{text}; a longer time_limit in [calibrate] allows larger ones"))
            self.progress.event(ShapeCalibrated(shape=_shape_text(shape), parameters=traced.parameters))
        parameters = traced.parameters or (0 if calibration.facts is None else calibration.facts.parameters)
        if self.budget_parameters is not None and parameters > self.budget_parameters:  # it could not be traced
            return self._too_many(parameters)
        try:
            plan, budget = (
                make_plan(
                    calibration,
                    effective_batch=effective_batch,
                    accept_inexact=self.options.accept_inexact,
                    min_micro_batch=self.options.min_micro_batch,
                ),
                calibration.budget("cpu"),
            )
        except UsageError as error:  # more micro-batches than a step may have
            return TooLarge(1.0, error.what, parameters, of_batch=True)
        limit = budget.budget_bytes + budget.margin_bytes if plan.device == "cpu" and budget is not None else None
        return Fitting(plan, path, parameters, limit, measured)

    def _policy(self) -> str:
        """Return the allocator policy of all shapes. The fastest depends on the machine. It is raced once, with the task as
        configured."""
        if self._allocator is None and self.options.allocator != AUTO:
            self._allocator = self.options.allocator
        if self._allocator is None:
            options = self.options.model_copy(update={"time_limit_s": max(self.options.time_limit_s, RACE_S)})
            try:
                calibration, _ = self._calibrated({}, options, self.folder / f"{self._key({})}-allocators.json")
                self._allocator = make_plan(calibration).allocator
            except (NothingFits, Partial, NoCalibration):
                self._allocator = "default"
        return self._allocator

    def _calibrated_patiently(
        self, shape: Mapping[str, Scalar], options: Options, path: Path, effective_batch: int
    ) -> tuple[Calibration, bool]:
        """Calibrate, and repeat with more time if nothing or little was verified: the result plans every trial of the shape."""
        more = options.model_copy(update={"time_limit_s": PATIENCE_FACTOR * options.time_limit_s})
        try:
            calibration, measured = self._calibrated(shape, options, path)
        except Partial:
            return self._calibrated(shape, more, path)
        if measured and _was_cut_short(calibration, effective_batch):
            return self._calibrated(shape, more, path, force=True)
        return calibration, measured

    def _calibrated(
        self, shape: Mapping[str, Scalar], options: Options, path: Path, *, force: bool = False
    ) -> tuple[Calibration, bool]:
        """Return the calibration of a shape, and True if this call measured it."""
        result = obtain(
            self._with(shape),
            options,
            Need(rehearsed=False, force=force, most_trained=self.most_trained),
            environment=self.environment,
            own_file=path,
            launchers=self.launchers,
            neighbours=self.neighbours,
            progress_context=lambda: self._announced(shape, options),
        )
        if result.stopped is not None:
            raise result.stopped
        if result.not_saved is not None:
            raise NotSaved(
                result.not_saved.what, known=result.not_saved.known, try_="free disk space, then run the same command again"
            )
        return result.calibration, not result.fresh

    def _announced(self, shape: Mapping[str, Scalar], options: Options) -> AbstractContextManager[Progress[CalibrationEvent]]:
        self.progress.event(ShapeStarted(shape=_shape_text(shape), seconds=options.time_limit_s))
        return nullcontext(self.progress)

    def _with(self, shape: Mapping[str, Scalar]) -> TaskReference:
        return self.reference.model_copy(update={"arguments": {**self.reference.arguments, **shape}})


def _was_cut_short(calibration: Calibration, effective_batch: int) -> bool:
    """Return True if the time limit is the only reason for small micro-batches."""
    finding = calibration.finding()
    return (
        finding is not None and finding.train.limited_by == "time-limit" and finding.train.batch < min(effective_batch, AT_ONCE)
    )


def _shape_text(shape: Mapping[str, Scalar]) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items()) or "as configured"
