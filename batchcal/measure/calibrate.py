"""Measurement of a calibration: the search for capacities, the races, the rehearsal of the plan, and the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcal.calibration.journal import Journal, Past, journal_writer
from batchcal.calibration.keys import Trust
from batchcal.calibration.records.undone import Undone
from batchcal.calibration.schema import Budget, Calibration, Fingerprint, Options
from batchcal.calibration.store import journal_path, save
from batchcal.core.clock import Clock
from batchcal.core.errors import BatchcalError, Interrupted, NothingFits, NotSaved, Partial
from batchcal.core.progress import Note, Output, Progress
from batchcal.core.units import MIB, count_of, format_bytes
from batchcal.detect.environment import Environment
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.budget import budgets_of
from batchcal.measure.capacity.attempts import Attempts
from batchcal.measure.capacity.device_search import DeviceSearch
from batchcal.measure.capacity.time import SearchTime
from batchcal.measure.children.child_probe import child_probe
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.children.probe import Probe
from batchcal.measure.commands.probe import command_probe
from batchcal.measure.deadline import Deadline, time_limit_name
from batchcal.measure.race.devices import DevicePolicies
from batchcal.measure.record import recorded, with_results_of
from batchcal.measure.rehearsal.plan_search import PlanSearch
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.result import CalibrationResult, Need
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.rehearsals.reduced import reduced
from batchcal.values.calibration_events import CalibrateEnded, CalibrateStarted, CalibrationEvent
from batchcal.values.settings import Objective
from batchcal.workload.spec.identity import TaskIdentity
from batchcal.workload.spec.reference import TaskReference

SHARE_OF_SEARCH: Final[dict[Objective, float]] = {"throughput": 0.6, "memory": 0.9}
"""Share of the time for the race of policies and the capacities. The rest is for the races of complete plans and the rehearsal.
The largest plan is not raced."""
SHARE_OF_SEARCH_BEFORE_WORKERS: Final = 0.5
"""The same share if the data is so heavy that the race of workers matters most."""
LEAST_ROOM_BYTES: Final = 288 * MIB
"""Minimum free memory to start a child, which loads torch before any fence can be armed. In groups of up to 300 MiB, of which the
command itself took 40 MiB, the kernel killed some children. A tiny model at rest holds 220 MiB and more."""


@dataclass
class Calibrator:
    """One calibration of `reference`, which writes its result to `path`."""

    reference: TaskReference
    options: Options
    need: Need
    environment: Environment
    identity: TaskIdentity
    fingerprint: Fingerprint
    path: Path
    trust: Trust
    progress: Progress[CalibrationEvent]
    clock: Clock
    probe: Probe | None
    """Replacement for child processes, for tests."""
    launchers: Launchers | None
    """None: the measurement creates its own launchers."""
    neighbours: bool
    keep_partial: bool = True
    """False: a valid calibration exists. A result without an answer does not replace or hide it."""
    existing: Calibration | None = None
    """Valid calibration for another objective. The results that are not measured again are taken from it."""

    def verify(self, existing: CalibrationResult) -> CalibrationResult:
        """Rehearse the plan for another effective batch and return `existing` with the result. Everything else stays the same."""
        start_s, meter = self.clock.monotonic(), memory_meter()
        budgets = {budget.device: budget for budget in existing.calibration.budgets}
        measured_options = existing.calibration.options
        effective_batch = self.options.effective_batch or existing.calibration.effective_batch
        updates = {
            "effective_batch": effective_batch,
            "objective": self.options.objective,
            "accept_inexact": measured_options.accept_inexact or self.options.accept_inexact,
            "min_micro_batch": self.options.min_micro_batch or measured_options.min_micro_batch,
        }
        options = existing.calibration.options.model_copy(update=updates)
        calibration = existing.calibration.model_copy(update={"effective_batch": effective_batch, "options": options})
        stopped: BatchcalError | None = None
        probe = self.probe
        try:
            if probe is None:
                self._check_room(meter)
                probe = self._children(budgets, meter)
            plan_search = PlanSearch(self._stage(probe, start_s), calibration, by_knob=self.need.by_setting)
            try:
                plan_search.rehearse_only()
                stopped = plan_search.error()
            except (Interrupted, DivisionRefused) as error:
                stopped = error
        finally:
            if probe is not None:
                probe.close()
            meter.close()
        return self._saved(plan_search.result(), list(existing.notices), stopped)

    def measure(self, start_s: float, notices: list[str], *, restart: bool) -> CalibrationResult:
        """Measure and write the result, complete or not."""
        measure_start_s = self.clock.monotonic()
        budgets = self._budgets()
        meter = memory_meter()
        if self.probe is None:
            self._check_room(meter)
        journal: Journal | None = None
        try:
            journal = Journal.open(
                journal_path(self.path),
                fingerprint=self.fingerprint,
                options=self.options,
                at=self.clock.now(),
                key=self.trust.key,
                restart=restart,
            )
        except NotSaved as error:
            notices.append(
                f"no journal could be written: {error.known or error.what}; an interruption would lose the measurements"
            )
        if journal is not None and journal.past.ignored:
            notices.append(f"the measurements of an unfinished calibration are not used: {journal.past.ignored}")
        probe = self.probe or self._children(budgets, meter)
        past, keep = Past() if journal is None else journal.past, journal_writer(journal, notices)
        device_search = DeviceSearch(
            attempts=Attempts(probe, self.progress, keep, past=past.measurements),
            policies=DevicePolicies(probe, self.options, self.clock, self.progress, keep, past=past.races),
            options=self.options,
            environment=self.environment,
            budgets=budgets,
            time=self._search_time(measure_start_s),
            progress=self.progress,
            most_trained=self.need.most_trained,
            needs_effective_batch=self.need.needs_effective_batch,
            until_before_workers=measure_start_s + self.options.time_limit_s * SHARE_OF_SEARCH_BEFORE_WORKERS,
        )
        self._announce(budgets)
        stopped: BatchcalError | None = None
        try:
            try:
                device_search.run()
            except (Interrupted, Partial) as error:
                stopped = error
            calibration = self._recorded(device_search, budgets, start_s, stopped)
            if stopped is None:
                calibration, stopped = self._rehearsed(calibration, probe, measure_start_s)
        finally:
            probe.close()
            meter.close()
            if journal is not None:
                journal.close()
        calibration = calibration.model_copy(update={"wall_s": round(self.clock.monotonic() - start_s, 3)})
        if self.existing is not None:
            calibration = reduced(with_results_of(self.existing, calibration))
        result = self._result(device_search, calibration, notices, stopped)
        if journal is not None and result.calibration.status == "complete" and result.path is not None:
            journal.remove()
        return result

    def rehearse_dry(self) -> CalibrationResult:
        """Run the search against an assumed machine, to show the sizes that it would request, and why."""
        start_s = self.clock.monotonic()
        budgets = budgets_of(self.environment, self.options)
        fake = FakeProbe()
        device_search = DeviceSearch(
            attempts=Attempts(fake, self.progress, keep=lambda measured: None),
            policies=DevicePolicies(fake, self.options, self.clock, self.progress),
            options=self.options,
            environment=self.environment,
            budgets=budgets,
            time=self._search_time(start_s),
            progress=self.progress,
            most_trained=self.need.most_trained,
        )
        self._announce(budgets)
        device_search.run()
        device_search.attempts.note(
            "this is a dry run: it assumes that the task needs 230 MiB + 1.5 MiB per sample; no step was run, no file was written"
        )
        calibration, _ = self._rehearsed(self._recorded(device_search, budgets, start_s, None), fake, start_s)
        calibration = calibration.model_copy(update={"status": "predicted"})
        self._report_end(device_search, calibration)
        return CalibrationResult(calibration=calibration, path=None, fresh=False)

    def _budgets(self) -> dict[str, Budget]:
        """Budgets of the devices to measure. A command is measured on the CPU only."""
        options = self.options.model_copy(update={"device": "cpu"}) if self.reference.command else self.options
        return budgets_of(self.environment, options)

    def _search_time(self, start_s: float) -> SearchTime:
        share = SHARE_OF_SEARCH[self.options.objective]
        return SearchTime(self.clock, until=start_s + self.options.time_limit_s * share, ends=start_s + self.options.time_limit_s)

    def _recorded(
        self, device_search: DeviceSearch, budgets: dict[str, Budget], start_s: float, stopped: BatchcalError | None
    ) -> Calibration:
        calibration = recorded(
            device_search,
            budgets,
            environment=self.environment,
            task=self.identity,
            fingerprint=self.fingerprint,
            at=self.clock.now(),
            stopped=stopped,
        )
        return calibration.model_copy(update={"wall_s": round(self.clock.monotonic() - start_s, 3)})

    def _stage(self, probe: Probe, start_s: float) -> Stage:
        return Stage(probe=probe, clock=self.clock, progress=self.progress, until=start_s + self.options.time_limit_s)

    def _rehearsed(self, calibration: Calibration, probe: Probe, start_s: float) -> tuple[Calibration, BatchcalError | None]:
        """Run the complete plan of `calibration`, as far as time allows. Return the result, and the error that ended it early."""
        plan_search = PlanSearch(self._stage(probe, start_s), calibration, by_knob=self.need.by_setting)
        stopped: BatchcalError | None = None
        try:
            if calibration.command is None:
                plan_search.run()
            elif calibration.finding() is not None:
                plan_search.rehearse_only()
        except Interrupted as error:
            stopped = error
            plan_search.undone.append(Undone(part="stopped", text=error.what))
        except DivisionRefused as error:
            # The measurements are valid for other effective batches.
            stopped = error
        except BatchcalError as error:
            # Results verified before stay valid.
            plan_search.undone.append(Undone(part="rehearsal", text=f"the races and the rehearsal ended early: {error.what}"))
        rehearsed = plan_search.result()
        if calibration.finding() is not None and rehearsed.finding() is None and stopped is None:
            stopped = NothingFits(
                "nothing fits: one sample fits alone, but a complete optimizer step of the plan does not fit",
                known="; ".join(plan_search.notes),
                try_="a larger container, a smaller model, or a smaller --margin",
            )
        return rehearsed, stopped or plan_search.error()

    def _check_room(self, meter: GroupMeter) -> None:
        """Raise NothingFits if there is not enough room for a child to measure."""
        if self.launchers is not None and self.launchers.running:
            return  # the launchers already hold most of the memory of a child at rest
        room = meter.limit_bytes - meter.hard_bytes()
        if room < LEAST_ROOM_BYTES:
            raise NothingFits(
                f"nothing fits: a process with torch takes about {format_bytes(LEAST_ROOM_BYTES)} before its first batch, "
                f"and only {format_bytes(max(room, 0))} is free",
                known=f"limit {format_bytes(meter.limit_bytes)}, in use {format_bytes(meter.hard_bytes())}",
                try_="a larger container, or fewer other processes in it",
            )

    def _children(self, budgets: Mapping[str, Budget], meter: GroupMeter) -> Probe:
        if self.reference.command:
            return command_probe(
                self.reference, self.options, self.environment, budgets, meter, deadline=Deadline(self.options.time_limit_s)
            )
        return child_probe(
            self.reference,
            self.options,
            self.environment,
            budgets,
            meter,
            note=lambda text: self.progress.event(Note(text)),
            deadline=Deadline(self.options.time_limit_s),
            printed=lambda text: self.progress.event(Output(text)),
            launchers=self.launchers,
            neighbours=self.neighbours,
        )

    def _announce(self, budgets: dict[str, Budget]) -> None:
        for device, budget in budgets.items():
            self.progress.event(
                CalibrateStarted(
                    task=self.reference.spec,
                    device=device,
                    allocator=self.options.allocator,
                    limit_bytes=budget.limit_bytes,
                    others_bytes=budget.others_bytes,
                    budget_bytes=budget.budget_bytes,
                    time_limit_s=self.options.time_limit_s,
                )
            )

    def _result(
        self,
        device_search: DeviceSearch,
        calibration: Calibration,
        notices: list[str],
        stopped: BatchcalError | None,
    ) -> CalibrationResult:
        if calibration.status == "partial" and stopped is None:
            probes_spent = self.options.max_probes is not None and device_search.attempts.started >= self.options.max_probes
            limit = (
                f"the limit of {self.options.max_probes} probes (--max-probes)"
                if probes_spent
                else time_limit_name(self.options.time_limit_s)
            )
            stopped = Partial(
                f"{limit} was reached before any batch size was verified",
                known=f"{count_of(len(device_search.attempts.measurements), 'probe')} in {calibration.wall_s:.0f} s; "
                f"{'; '.join([undone.text for undone in device_search.undone] or device_search.attempts.notes)}",
                try_="a longer --time-limit, or more --max-probes; finished measurements are not repeated",
            )
        result = self._saved(calibration, notices, stopped)
        self._report_end(device_search, calibration)
        return result

    def _saved(self, calibration: Calibration, notices: list[str], stopped: BatchcalError | None) -> CalibrationResult:
        """Save the calibration if possible, and return the result. A partial calibration does not replace an existing file, and
        one that was stopped does not replace a valid one."""
        path: Path | None = self.path
        not_saved: NotSaved | None = None
        is_less = self.existing is not None and isinstance(stopped, (Interrupted, Partial))
        try:
            if is_less:
                path = None
                notices.append("the existing calibration is kept, because the measurement was stopped")
            elif calibration.status != "partial" or (self.keep_partial and not self.path.exists()):
                save(calibration, self.path, key=self.trust.key)
        except NotSaved as error:
            path, not_saved = None, error
        return CalibrationResult(
            calibration=calibration, path=path, fresh=False, notices=tuple(notices), not_saved=not_saved, stopped=stopped
        )

    def _report_end(self, device_search: DeviceSearch, calibration: Calibration) -> None:
        finding = calibration.finding()
        self.progress.event(
            CalibrateEnded(
                status=calibration.status,
                device=calibration.chosen_device,
                train_batch=finding.train.batch if finding else None,
                eval_batch=finding.eval.batch if finding and finding.eval else None,
                limited_by=finding.train.limited_by if finding else None,
                probes=device_search.attempts.started,
                wall_s=calibration.wall_s,
            )
        )
