"""Environment + Task -> Calibration. Reads like a list; the work is in the rooms it names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.journal import Journal, Past, keeper
from batchcal.calibration.keys import Trust, find_or_make_trust, find_trust
from batchcal.calibration.schema import Budget, Calibration, Fingerprint, Objective, Options
from batchcal.calibration.store import Loaded, default_path, journal_path, load_fresh, lock_path, make_folder, save
from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import BatchcalError, Interrupted, NothingFits, NotSaved, Partial
from batchcal.core.lock import Lock
from batchcal.core.progress import Progress, Silent
from batchcal.core.units import MIB, count_of, format_bytes
from batchcal.detect.environment import Environment
from batchcal.guard.allocator import AUTO, resolve
from batchcal.guard.cgroup import memory_meter
from batchcal.guard.watchdog import MemoryGroup
from batchcal.measure.attempts import Attempts
from batchcal.measure.budget import budgets_of
from batchcal.measure.campaign import Campaign
from batchcal.measure.children.child_probe import ChildProbe, child_probe
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.children.probe import Probe
from batchcal.measure.race.devices import DevicePolicies
from batchcal.measure.record import recorded
from batchcal.measure.rehearsal.rehearsing import Rehearsing
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.result import CalibrationResult
from batchcal.plan.make import is_rehearsed
from batchcal.workload.identity import TaskIdentity, identify
from batchcal.workload.reference import TaskReference

LOCK_WAIT_FACTOR: Final = 2.0
"""Another calibration of the same file is waited for this many time limits, then we go on without the lock."""
SHARE_OF_CAMPAIGN: Final[dict[Objective, float]] = {"throughput": 0.6, "memory": 0.9}
"""Of the time: for the race of policies and the capacities. The rest is for the races of whole plans and the rehearsal; the
largest plan is not raced."""
SHARE_OF_CAMPAIGN_BEFORE_WORKERS: Final = 0.5
"""The same where the data is so heavy that the race of workers matters most."""
LEAST_ROOM_BYTES: Final = 288 * MIB
"""No child is started with less to itself: it loads torch before any fence can be armed, and in groups of up to 300 MiB, of which
the command itself took 40, the kernel killed some. A tiny model at rest holds 220 MiB and more."""


def calibrate(
    reference: TaskReference,
    options: Options,
    *,
    environment: Environment,
    output: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    require_signature: bool = False,
    most_trained: int | None = None,
    probe: Probe | None = None,
    launchers: Launchers | None = None,
    neighbours: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
    environ: Mapping[str, str] | None = None,
) -> CalibrationResult:
    """Measures `reference` within the limits of `environment`, or finds that a fresh calibration is there.

    Progress events, in order: `calibrate_started`, then for each device and policy `phase`, `probe_started`, `probe_ended`,
    `best` and `note`, then `calibrate_ended`.

    Args:
        output: the file to write; default: BATCHCAL_CALIBRATION, else `.batchcal/calibration.json` of the project.
        force: measure although a fresh calibration is there, and from the beginning.
        dry_run: run the search against an assumed machine, without starting a child or writing a file.
        most_trained: micro-batches larger than that are not tried: who asks has no use for them. Evaluation may have more.
        probe: another way to measure, for tests.
        launchers: who starts the children, and is not closed: for who calibrates again and again. None: somebody of its own.
        neighbours: others come and go in the memory group meanwhile: what it holds more is not held against the children.

    Raises:
        UsageError, UserCodeError, NothingFits: see `Campaign.run`. An interruption or a lack of time does not raise: see
            `CalibrationResult.stopped`.
    """
    # A policy that this system does not have is refused before anything is measured; and one library has one name.
    if options.allocator != AUTO:
        options = options.model_copy(update={"allocator": resolve(options.allocator).name})
    variables = dict(os.environ if environ is None else environ)
    trust_of = find_trust if dry_run else find_or_make_trust  # a dry run makes no key either
    run = _Run(
        reference=reference,
        options=options,
        environment=environment,
        identity=identify(reference),
        path=output or default_path(Path(reference.directory), variables),
        trust=trust_of(variables, require_signature=require_signature),
        progress=progress or Silent(),
        clock=clock or SystemClock(),
        most_trained=most_trained,
        probe=probe,
        launchers=launchers,
        neighbours=neighbours,
        environ=variables,
    )
    if dry_run:
        return run.rehearse_dry()
    if not force and (found := run.enough()) is not None:
        return found
    return run.locked(force=force)


@dataclass
class _Run:
    reference: TaskReference
    options: Options
    environment: Environment
    identity: TaskIdentity
    path: Path
    trust: Trust
    progress: Progress
    clock: Clock
    most_trained: int | None
    probe: Probe | None
    launchers: Launchers | None
    neighbours: bool
    environ: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What has to be the same for a calibration to hold, here and now."""
        return fingerprint_of(self.environment, self.identity, self.options, environ=self.environ)

    def fresh(self) -> CalibrationResult | None:
        """The calibration that is there, if it may be used here and now."""
        found = load_fresh(self.path, self.fingerprint, at=self.clock.now(), trust=self.trust)
        if not isinstance(found, Loaded) or found.calibration.status == "partial":
            return None
        return CalibrationResult(calibration=found.calibration, path=self.path, fresh=True, notices=found.notices)

    def enough(self) -> CalibrationResult | None:
        """The same, where the plan that is asked for was run whole, too."""
        found = self.fresh()
        return found if found is not None and is_rehearsed(found.calibration, self.options) else None

    def locked(self, *, force: bool) -> CalibrationResult:
        """Single flight: replicas on one volume calibrate once; without a lock both do, and both files are valid."""
        began = self.clock.monotonic()
        notices: list[str] = []
        with contextlib.suppress(OSError):  # saving will say so, with the result on stdout
            make_folder(self.path)
        with Lock(lock_path(self.path), clock=self.clock) as lock:
            others = lock.acquire(
                wait_s=self.options.time_limit_s * LOCK_WAIT_FACTOR, done=lambda: not force and self.enough() is not None
            )
            if not force and (found := self.enough()) is not None:
                return found
            if others.notice:
                notices.append(others.notice)
            if not force and (found := self.fresh()) is not None:
                return self.verified(found)
            return self.measure(began, notices, anew=force)

    def verified(self, found: CalibrationResult) -> CalibrationResult:
        """What was found, with the plan for another effective batch run whole. All else is kept."""
        began, meter = self.clock.monotonic(), memory_meter()
        budgets = {budget.device: budget for budget in found.calibration.budgets}
        asked = {"effective_batch": self.options.effective_batch, "objective": self.options.objective}
        options = found.calibration.options.model_copy(update=asked)
        calibration = found.calibration.model_copy(update={"effective_batch": self.options.effective_batch, "options": options})
        stopped: BatchcalError | None = None
        probe = self.probe
        try:
            if probe is None:
                self._check_room(meter)
                probe = self._children(budgets, meter)
            rehearsing = Rehearsing(self._stage(probe, began), calibration)
            try:
                rehearsing.rehearse_alone()
            except Interrupted as error:
                stopped = error
        finally:
            if probe is not None:
                probe.close()
            meter.close()
        return self._saved(rehearsing.told(), list(found.notices), stopped)

    def measure(self, began: float, notices: list[str], *, anew: bool) -> CalibrationResult:
        """Measures, and writes what came of it, however it ended."""
        measuring = self.clock.monotonic()
        budgets = budgets_of(self.environment, self.options)
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
                anew=anew,
            )
        except NotSaved as error:
            notices.append(f"no journal: {error.known or error.what}; an interruption would lose what was measured")
        if journal is not None and journal.past.ignored:
            notices.append(f"what an unfinished calibration measured is not used: {journal.past.ignored}")
        probe = self.probe or self._children(budgets, meter)
        past, keep = Past() if journal is None else journal.past, keeper(journal, notices)
        campaign = Campaign(
            probe=probe,
            attempts=Attempts(probe, self.progress, keep, past=past.measurements),
            policies=DevicePolicies(probe, self.options, self.clock, self.progress, keep, past=past.races),
            options=self.options,
            environment=self.environment,
            budgets=budgets,
            clock=self.clock,
            progress=self.progress,
            until=measuring + self.options.time_limit_s * SHARE_OF_CAMPAIGN[self.options.objective],
            ends=measuring + self.options.time_limit_s,
            most_trained=self.most_trained,
            until_before_workers=measuring + self.options.time_limit_s * SHARE_OF_CAMPAIGN_BEFORE_WORKERS,
        )
        self._announce(budgets)
        stopped: BatchcalError | None = None
        try:
            try:
                campaign.run()
            except Interrupted as error:
                stopped = error
            calibration = self._recorded(campaign, budgets, began, stopped)
            if stopped is None:
                calibration, stopped = self._rehearsed(calibration, probe, measuring)
        finally:
            probe.close()
            meter.close()
            if journal is not None:
                journal.close()
        calibration = calibration.model_copy(update={"wall_s": round(self.clock.monotonic() - began, 3)})
        result = self._result(campaign, calibration, notices, stopped)
        if journal is not None and result.calibration.status == "complete" and result.path is not None:
            journal.remove()
        return result

    def rehearse_dry(self) -> CalibrationResult:
        """The search against an assumed machine: what would be asked, and why."""
        began = self.clock.monotonic()
        budgets = budgets_of(self.environment, self.options)
        fake = FakeProbe()
        campaign = Campaign(
            probe=fake,
            attempts=Attempts(fake, self.progress, keep=lambda measured: None),
            policies=DevicePolicies(fake, self.options, self.clock, self.progress),
            options=self.options,
            environment=self.environment,
            budgets=budgets,
            clock=self.clock,
            progress=self.progress,
            until=began + self.options.time_limit_s * SHARE_OF_CAMPAIGN[self.options.objective],
            ends=began + self.options.time_limit_s,
            most_trained=self.most_trained,
        )
        self._announce(budgets)
        campaign.run()
        campaign.attempts.note(
            "a dry run: the task's memory was assumed (230 MiB + 1.5 MiB a sample), nothing was run or written"
        )
        calibration, _ = self._rehearsed(self._recorded(campaign, budgets, began, None), fake, began)
        self._tell_the_end(campaign, calibration)
        return CalibrationResult(calibration=calibration, path=None, fresh=False)

    def _recorded(
        self, campaign: Campaign, budgets: dict[str, Budget], began: float, stopped: BatchcalError | None
    ) -> Calibration:
        calibration = recorded(
            campaign,
            budgets,
            environment=self.environment,
            task=self.identity,
            fingerprint=self.fingerprint,
            at=self.clock.now(),
            stopped=stopped,
        )
        return calibration.model_copy(update={"wall_s": round(self.clock.monotonic() - began, 3)})

    def _stage(self, probe: Probe, began: float) -> Stage:
        return Stage(probe=probe, clock=self.clock, progress=self.progress, until=began + self.options.time_limit_s)

    def _rehearsed(self, calibration: Calibration, probe: Probe, began: float) -> tuple[Calibration, BatchcalError | None]:
        """`calibration` with its plan run whole, as far as there was time; and why that ended early."""
        rehearsing = Rehearsing(self._stage(probe, began), calibration)
        stopped: BatchcalError | None = None
        try:
            rehearsing.run()
        except Interrupted as error:
            stopped = error
            rehearsing.undone.append(error.what)
        except BatchcalError as error:
            # What was verified before stands.
            rehearsing.undone.append(f"the rehearsal: {error.what}")
        return rehearsing.told(), stopped

    def _check_room(self, meter: MemoryGroup) -> None:
        """Raises NothingFits where there is no room for a child to measure in."""
        if self.launchers is not None and self.launchers.there:
            return  # most of what a child holds at rest is there already
        room = meter.limit_bytes - meter.hard_bytes()
        if room < LEAST_ROOM_BYTES:
            raise NothingFits(
                f"nothing fits: a process with torch takes about {format_bytes(LEAST_ROOM_BYTES)} before its first batch, "
                f"and {format_bytes(max(room, 0))} are free",
                known=f"limit {format_bytes(meter.limit_bytes)}, in use {format_bytes(meter.hard_bytes())}",
                try_="a larger container, or fewer neighbours in it",
            )

    def _children(self, budgets: Mapping[str, Budget], meter: MemoryGroup) -> ChildProbe:
        return child_probe(
            self.reference,
            self.options,
            self.environment,
            budgets,
            meter,
            note=lambda text: self.progress.event("note", {"text": text}),
            launchers=self.launchers,
            neighbours=self.neighbours,
        )

    def _announce(self, budgets: dict[str, Budget]) -> None:
        for device, budget in budgets.items():
            self.progress.event(
                "calibrate_started",
                {
                    "task": self.reference.spec,
                    "device": device,
                    "allocator": self.options.allocator,
                    "limit_bytes": budget.limit_bytes,
                    "others_bytes": budget.others_bytes,
                    "budget_bytes": budget.budget_bytes,
                    "time_limit_s": self.options.time_limit_s,
                },
            )

    def _result(
        self,
        campaign: Campaign,
        calibration: Calibration,
        notices: list[str],
        stopped: BatchcalError | None,
    ) -> CalibrationResult:
        if calibration.status == "partial" and stopped is None:
            stopped = Partial(
                "stopped before any batch size was verified",
                known=f"{count_of(len(campaign.attempts.measurements), 'probe')} in {calibration.wall_s:.0f} s; "
                f"{'; '.join(campaign.undone or campaign.attempts.notes)}",
                try_="a longer --time-limit, or more --max-probes; what was measured is not measured again",
            )
        result = self._saved(calibration, notices, stopped)
        self._tell_the_end(campaign, calibration)
        return result

    def _saved(self, calibration: Calibration, notices: list[str], stopped: BatchcalError | None) -> CalibrationResult:
        """The result, on disk where that can be written. A partial one does not take the place of what is there."""
        path: Path | None = self.path
        not_saved: NotSaved | None = None
        try:
            if calibration.status != "partial" or not self.path.exists():
                save(calibration, self.path, key=self.trust.key)
        except NotSaved as error:
            path, not_saved = None, error
        return CalibrationResult(
            calibration=calibration, path=path, fresh=False, notices=tuple(notices), not_saved=not_saved, stopped=stopped
        )

    def _tell_the_end(self, campaign: Campaign, calibration: Calibration) -> None:
        finding = calibration.finding()
        self.progress.event(
            "calibrate_ended",
            {
                "status": calibration.status,
                "device": calibration.chosen_device,
                "train_batch": finding.train.batch if finding else None,
                "eval_batch": finding.eval.batch if finding and finding.eval else None,
                "limited_by": finding.train.limited_by if finding else None,
                "probes": campaign.attempts.started,
                "wall_s": calibration.wall_s,
            },
        )
