"""The last part of a calibration: threads and workers race, the complete plan runs, and its gain is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.records.rehearsal import Finals, Rehearsal
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.records.undone import Part, Undone
from batchcal.calibration.schema import Calibration
from batchcal.core.errors import UserCodeError
from batchcal.core.progress import Note
from batchcal.guard.outcome import Fits, Suspect, UserCodeFailed
from batchcal.measure.outcomes import described
from batchcal.measure.pipeline.candidates import limits_of
from batchcal.measure.rehearsal.attribution import attribute
from batchcal.measure.rehearsal.finals import entries, race_finals, timed_threads
from batchcal.measure.rehearsal.loading import Loading, other_start_method
from batchcal.measure.rehearsal.size_race import race_sizes
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.rehearsal.work_bound import WorkBound
from batchcal.measure.time_slices import TimeSlices
from batchcal.measure.workers.trial import trial_of
from batchcal.plan.division.last_group import last_group_fails
from batchcal.plan.effective_batch import effective_batch_of
from batchcal.plan.make import host_room, make_plan, own_plan
from batchcal.plan.plan import Plan
from batchcal.plan.rehearsals.reduced import reduced
from batchcal.plan.rehearsals.rehearsed import is_conclusive, rehearsal_of, setup_of
from batchcal.plan.workers import worker_bytes
from batchcal.values.calibration_events import Attributed, FinalistEnded, PhaseBegan, Rehearsed, SizeEnded
from batchcal.values.settings import Objective

SHARE_OF_FINALS: Final = 0.35
"""Maximum share of the remaining time. The rehearsal comes next, and without it no plan is verified."""
SHARE_OF_FINALS_OF_HEAVY_DATA: Final = 0.65
"""The same if the step waits for its batch. Sizes are raced after that, and only if workers bring no gain."""
SHARE_OF_SIZES: Final = 0.5
"""Maximum share of the remaining time. The value of rounds is in their number."""
EXAMINATION_S: Final = 1.0
"""Seconds for the static curves, which are not needed to verify only a plan."""
TRIES: Final = 3
"""Maximum number of rehearsals. A plan that ran out of memory is made again, smaller, and run again."""


@dataclass
class PlanSearch:
    """The last part of a calibration. `calibration` contains all results so far at any moment, however this ends."""

    stage: Stage
    calibration: Calibration
    by_knob: bool = False
    """Measure the part of each setting in the gain over PyTorch's defaults."""
    undone: list[Undone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _was_rehearsed: bool = False
    """True if the plan has just run completely. False: its rehearsal is older."""
    _failed: UserCodeFailed | None = None
    """Failure of the task's own code with ordinary samples, at sizes that ran with the largest samples."""
    _timed: tuple[StepTime, ...] = ()
    """Times from the race of sizes, with all threads."""

    def __post_init__(self) -> None:
        self.slices = TimeSlices(self.stage.clock)

    def run(self) -> None:
        """Run the parts that there is time for, and add their results.

        Raises:
            BatchcalError: as the probe's methods.
        """
        if self.calibration.finding() is None:
            return
        if self.calibration.options.objective == "throughput":
            if self._is_time_over("threads-and-workers", "the race of threads and workers"):
                return
            # If the step waits for its batch, whatever its size, the time is used for workers.
            heavy = self._data_is_heavy()
            if not heavy:
                self._race_sizes()
            with self.slices.spent_on("threads-and-workers"):
                self._race()
            if heavy and not self.plan().num_workers:
                self._race_sizes()
        if not self._is_time_over("rehearsal", "the rehearsal"):
            plan = self.plan()
            if not self.calibration.finals and self.calibration.environment.optimal_workers:
                self._try_workers(plan)  # without a race, workers are planned by the number of cores
            with self.slices.spent_on("rehearsal"):
                self._rehearse()
            self._attribute()

    def rehearse_only(self) -> None:
        """Run only the plan. All other results remain as they are.

        Raises:
            BatchcalError: as the probe's methods.
        """
        plan = self.plan()
        self.stage.probe.set_size_rule(self.calibration.obeyed)
        if self.calibration.command is None:
            # The probe does not know yet which samples are the largest.
            self.stage.probe.examine(plan.device, plan.allocator, plan.budget_bytes, EXAMINATION_S)
        if self._is_time_over("rehearsal", "the rehearsal"):
            return
        before = self.calibration.undone
        self._update(undone=tuple(undone for undone in before if undone.part != "rehearsal"))
        if self.calibration.status == "unsettled" and not self.calibration.undone:
            self._update(status="complete")
        self._rehearse()  # the time slices are those of the command that measured
        if self.by_knob:
            self._attribute()

    def result(self) -> Calibration:
        """Return the calibration with the parts that were not done. Failed rehearsals have reduced its capacities."""
        calibration = reduced(self.calibration)
        unsettled = calibration.status == "complete" and bool(self.undone)
        return calibration.model_copy(
            update={
                "status": "unsettled" if unsettled else calibration.status,
                "undone": (*calibration.undone, *self.undone),
                "notes": (*calibration.notes, *self.notes),
                "time_slices": (*calibration.time_slices, *self.slices.durations()),
                "unanswered": _unanswered(calibration),
            }
        )

    def error(self) -> UserCodeError | None:
        """Return the failure of the task's own code that a training would meet. None: there was none."""
        failed = self._failed
        return None if failed is None else UserCodeError(failed.error, known=failed.evidence, try_=failed.hint)

    def plan(self) -> Plan:
        """Return the plan that the calibration makes in its current state."""
        return own_plan(self.calibration)

    def _race(self) -> None:
        plan = self.plan()
        without_workers = plan.model_copy(
            update={
                "num_workers": 0,
                "prefetch_factor": None,
                "persistent_workers": False,
                "intra_op_threads": self.calibration.environment.optimal_threads,
            }
        )
        self._phase("finals", "threads and DataLoader workers")
        stage = self.stage.part(SHARE_OF_FINALS_OF_HEAVY_DATA if self._data_is_heavy() else SHARE_OF_FINALS)
        times, why = timed_threads(stage, without_workers)
        if without_workers.intra_op_threads not in times:
            why = f"no step could be timed{why and f', {why}'}"
            self._add_undone("threads-and-workers", f"the race of threads and workers: {why}")
            return
        for step_time in self._timed:
            # An observed speed of a number of threads is possible, even if the machine was slower a moment later.
            if step_time.micro_batch == without_workers.micro_batch and step_time.threads in times:
                times[step_time.threads] = times[step_time.threads].or_better(step_time)
        cores, on_host = self.calibration.environment.cpu.cores.value, plan.device == "cpu"
        work = WorkBound(times, cores, on_host)
        if any(finalist.num_workers and not finalist.left for finalist in entries(work, self._loading(plan))):
            self._try_workers(plan)
        finals = race_finals(stage, without_workers, work, self._loading(plan))
        self._update(finals=(*self.calibration.finals, finals))
        self._report_finalists(finals)
        if not finals.settled:
            self._add_undone("threads-and-workers", "the race of threads and workers ended before the fastest was certain")

    def _loading(self, plan: Plan) -> Loading:
        """Return the facts about loading the micro-batches of `plan`."""
        facts, workers = self.calibration.facts, self.calibration.loader_workers
        batch_bytes = 0.0 if facts is None else facts.batch_bytes_per_sample * plan.micro_batch
        room = limits_of(
            self.calibration.environment,
            memory_bytes=host_room(self.calibration, plan),
            worker_bytes=worker_bytes(self.calibration, None if workers is None else workers.start),
        )
        other_start = other_start_method(
            pickles=facts is not None and facts.dataset_pickle_bytes is not None, on_host=plan.device == "cpu"
        )
        return Loading(
            room=room,
            batch_bytes=batch_bytes,
            stream=facts is None or facts.train_samples is None,
            pinned_workers=self.calibration.options.workers,
            other_start=other_start,
            other_worker_bytes=worker_bytes(self.calibration, other_start),
            start=None if workers is None else workers.start,
            why_none="" if workers is None else workers.why_none,
        )

    def _try_workers(self, plan: Plan) -> None:
        """Before any worker is raced or planned, check whether workers are possible, and measure the memory that they reach."""
        if self.calibration.loader_workers is not None or self.calibration.options.workers is not None:
            return
        with self.slices.spent_on("worker-trial"):
            trial = trial_of(plan.device, plan.allocator, requested=None, left_s=self.stage.left_s())
            report = self.stage.probe.try_workers(trial)
        self._update(promises=(*self.calibration.promises, report.check), loader_workers=report.workers)
        if report.workers.why_none:
            self._note(f"no DataLoader workers: {report.workers.why_none}")
        elif report.workers.start is not None:
            self._note(f"DataLoader workers are started by {report.workers.start}: {report.workers.why_start}")

    def _race_sizes(self) -> None:
        finding = self.calibration.finding()
        if finding is None or self.stage.left_s() <= 0:
            return
        requested = effective_batch_of(self.calibration, self.calibration.effective_batch)
        # Without an effective batch every size up to the capacity is a candidate.
        samples = finding.train.batch if requested is None else requested.samples
        plan = make_plan(self.calibration, effective_batch=samples)
        with self.slices.spent_on("micro-batches"):
            result = race_sizes(
                self.stage.part(SHARE_OF_SIZES),
                plan,
                self.calibration.speeds_of(finding),
                finding.train.batch,
                rule=self.calibration.obeyed,
            )
        if result is None:
            return
        race, self._timed = result
        self._update(sizes=(*self.calibration.sizes, race))
        for size_time in race.sizes:
            self.stage.progress.event(
                SizeEnded(micro_batch=size_time.micro_batch, samples_per_s=size_time.samples_per_s, ended=size_time.why or None)
            )

    def _data_is_heavy(self) -> bool:
        finding = self.calibration.finding()
        speeds = None if finding is None else self.calibration.speeds_of(finding)
        return speeds is not None and speeds.data_is_heavy

    def _rehearse(self) -> None:
        self._phase("rehearsal", "the complete plan, with the largest samples")
        for _ in range(TRIES):
            plan = self.plan()
            previous = rehearsal_of(self.calibration, plan)
            if previous is not None and previous.fits:
                return
            if previous is not None:
                break
            report, run = self.stage.rehearse(plan)
            if not is_conclusive(report.outcome) or isinstance(report.outcome, Suspect):
                report, run = self.stage.rehearse(plan)  # an accident, or a crash that may be one: run it again
            rates = () if report.times is None else report.times.eval_samples_per_s
            rehearsal = Rehearsal(
                settings=setup_of(plan),
                micro_batches_run=run,
                outcome=report.outcome,
                evaluating=report.evaluating and not isinstance(report.outcome, Fits),
                wait_share=None if report.times is None else report.times.wait_share,
                eval_samples_per_s=rates[-1] if rates else None,
                eval_samples_per_s_at_micro_batch=rates[0] if len(rates) > 1 else None,
                wall_s=report.wall_s,
                last_group_error="" if report.times is None else report.times.last_group_error,
            )
            if rehearsal.last_group_error:
                self._note(last_group_fails(plan.last_group, rehearsal.last_group_error))
            self._update(rehearsals=(*self.calibration.rehearsals, rehearsal))
            outcome = report.outcome
            self.stage.progress.event(
                Rehearsed(
                    effective_batch=plan.effective_batch,
                    micro_batch=plan.micro_batch,
                    outcome=outcome.kind,
                    detail=None if rehearsal.fits else described(outcome),
                    peak_bytes=outcome.peak.bytes_on(plan.device) if isinstance(outcome, Fits) else None,
                    budget_bytes=plan.budget_bytes,
                    samples_per_s=outcome.samples_per_s if isinstance(outcome, Fits) else None,
                )
            )
            if rehearsal.fits:
                self._was_rehearsed = True
                return
            failed_part = f"evaluation batch {plan.eval_batch}" if rehearsal.evaluating else f"micro-batch {plan.micro_batch}"
            self._note(f"the rehearsal failed at {failed_part}: {described(outcome)}")
            if isinstance(outcome, UserCodeFailed) and not rehearsal.evaluating:
                self._failed = outcome
        self._add_undone("rehearsal", "the rehearsal failed for each plan that was tried")

    def _attribute(self) -> None:
        plan = self.plan()
        # A user who requests the largest batch does not need the gain.
        if plan.objective == "memory" or plan.status != "verified" or self.stage.left_s() <= 0:
            return
        self._phase("attribution", f"PyTorch's defaults{', each setting alone, too' if self.by_knob else ''}")
        with self.slices.spent_on("attribution"):
            attribution = attribute(
                self.stage, self.calibration, plan, by_knob=self.by_knob, was_just_rehearsed=self._was_rehearsed
            )
        if attribution is None:
            return
        self._update(attribution=attribution)
        rates: dict[str, float | None] = {turned_back.knob: turned_back.samples_per_s for turned_back in attribution.knobs}
        self.stage.progress.event(Attributed(gain=attribution.gain, samples_per_s=rates))

    def _is_time_over(self, part: Part, name: str) -> bool:
        if self.stage.left_s() > 0:
            return False
        self._add_undone(part, f"{name}: no time was left")
        return True

    def _add_undone(self, part: Part, text: str) -> None:
        self.undone.append(Undone(part=part, text=text))

    def _update(self, **update: object) -> None:
        self.calibration = self.calibration.model_copy(update=update)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.stage.progress.event(Note(text))

    def _phase(self, name: str, why: str) -> None:
        self.stage.progress.event(PhaseBegan(phase=name, device=self.calibration.chosen_device, why=why))

    def _report_finalists(self, finals: Finals) -> None:
        for finalist in finals.finalists:
            if finalist.samples_per_s is not None:
                self.stage.progress.event(
                    FinalistEnded(
                        intra_op_threads=finalist.intra_op_threads,
                        num_workers=finalist.num_workers,
                        samples_per_s=finalist.samples_per_s,
                        ended=finalist.why or None,
                    )
                )


def _unanswered(calibration: Calibration) -> tuple[Objective, ...]:
    """Objectives that are left when the races have ended."""
    left = calibration.unanswered or ()
    return tuple(objective for objective in left if objective != "throughput" or not calibration.finals)
