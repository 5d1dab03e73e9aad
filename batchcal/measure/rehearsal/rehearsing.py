"""The last part of a calibration: threads and workers are raced, the plan is run whole, and what it gains is told apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.rehearsal import Finals, Rehearsal
from batchcal.calibration.schema import Calibration
from batchcal.calibration.speed import StepTime
from batchcal.guard.outcome import Fits, Suspect
from batchcal.measure.attempts import said
from batchcal.measure.pipeline.candidates import room_of
from batchcal.measure.rehearsal.attribution import attribute
from batchcal.measure.rehearsal.finals import race_finals, timed_threads
from batchcal.measure.rehearsal.loading import Loading, other_start_method
from batchcal.measure.rehearsal.sizes import race_sizes
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.rehearsal.work import Work
from batchcal.plan.make import host_room, make_plan
from batchcal.plan.plan import Plan
from batchcal.plan.rehearsed import rehearsal_of, settings_of, tells
from batchcal.plan.workers import worker_bytes

SHARE_OF_FINALS: Final = 0.35
"""Of the time left, at most; the rehearsal comes next, and without it no plan is verified."""
SHARE_OF_FINALS_OF_HEAVY_DATA: Final = 0.65
"""The same where the step waits for its batch: sizes are raced only if workers bring nothing, and after that."""
SHARE_OF_SIZES: Final = 0.5
"""Of the time left, at most: what rounds are worth is in how many there are."""
OF_THE_REHEARSAL: Final = "the rehearsal"
"""How what it left undone begins: a later rehearsal that goes well takes that back."""
EXAMINATION_S: Final = 1.0
"""For the static curves, which a plan that is verified alone has no use for."""
TRIES: Final = 3
"""A plan that ran out of memory is made anew, smaller, and run again."""


@dataclass
class Rehearsing:
    """What is known so far is in `calibration` at any moment, however this ends."""

    stage: Stage
    calibration: Calibration
    undone: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _timed: tuple[StepTime, ...] = ()
    """What the race of sizes saw, with as many threads as there are."""

    def run(self) -> None:
        """Fills in what there is time for.

        Raises:
            BatchcalError: as the probe's methods.
        """
        if self.calibration.finding() is None:
            return
        if self.calibration.options.objective == "throughput":
            if self._none_left("the race of threads and workers"):
                return
            # Where the step waits for its batch, whatever its size, the time is the workers'.
            heavy = self._data_is_heavy()
            if not heavy:
                self._race_sizes()
            self._race()
            if heavy and not self.plan().num_workers:
                self._race_sizes()
        if not self._none_left("the rehearsal"):
            self._rehearse()
            self._attribute()

    def rehearse_alone(self) -> None:
        """Only the plan: all else is as it was.

        Raises:
            BatchcalError: as the probe's methods.
        """
        plan = self.plan()
        # Which samples are the largest is known to nobody who was not told.
        self.stage.probe.examine(plan.device, plan.allocator, plan.budget_bytes, EXAMINATION_S)
        if self._none_left("the rehearsal"):
            return
        before = self.calibration.undone
        self._know(undone=tuple(text for text in before if not text.startswith(OF_THE_REHEARSAL)))
        if self.calibration.status == "unsettled" and not self.calibration.undone:
            self._know(status="complete")
        self._rehearse()

    def told(self) -> Calibration:
        """The calibration, which says what was left undone."""
        calibration = self.calibration
        unsettled = calibration.status == "complete" and bool(self.undone)
        return calibration.model_copy(
            update={
                "status": "unsettled" if unsettled else calibration.status,
                "undone": (*calibration.undone, *self.undone),
                "notes": (*calibration.notes, *self.notes),
            }
        )

    def plan(self) -> Plan:
        """The plan that the calibration makes as it is now."""
        return make_plan(self.calibration, objective=self.calibration.options.objective)

    def _race(self) -> None:
        plan = self.plan()
        alone = plan.model_copy(
            update={
                "num_workers": 0,
                "prefetch_factor": None,
                "persistent_workers": False,
                "intra_op_threads": self.calibration.environment.optimal_threads,
            }
        )
        self._phase("finals", "threads and DataLoader workers")
        stage = self.stage.part(SHARE_OF_FINALS_OF_HEAVY_DATA if self._data_is_heavy() else SHARE_OF_FINALS)
        times, why = timed_threads(stage, alone)
        if not times:
            self.undone.append(f"the race of threads and workers: no step could be timed{why and f', {why}'}")
            return
        for seen in self._timed:
            # What a number of threads was seen to do it can do, though a moment later the machine was slower.
            if seen.micro_batch == alone.micro_batch and seen.threads in times:
                times[seen.threads] = times[seen.threads].or_better(seen)
        facts = self.calibration.facts
        batch_bytes = 0.0 if facts is None else facts.batch_bytes_per_sample * plan.micro_batch
        room = room_of(
            self.calibration.environment,
            memory_bytes=host_room(self.calibration, plan),
            worker_bytes=worker_bytes(self.calibration),
        )
        cores, on_host = self.calibration.environment.cpu.cores.value, plan.device == "cpu"
        other = other_start_method(pickles=facts is not None and facts.dataset_pickle_bytes is not None, on_host=on_host)
        loading = Loading(
            room=room,
            batch_bytes=batch_bytes,
            stream=facts is None or facts.train_samples is None,
            pinned_workers=self.calibration.options.workers,
            other_start=other,
            other_worker_bytes=worker_bytes(self.calibration, other),
        )
        finals = race_finals(stage, alone, Work(times, cores, on_host), loading)
        self._know(finals=(*self.calibration.finals, finals))
        self._tell(finals)
        if not finals.settled:
            self.undone.append("the race of threads and workers is not settled")

    def _race_sizes(self) -> None:
        plan, finding = self.plan(), self.calibration.finding()
        if finding is None or self.stage.left_s() <= 0:
            return
        found = race_sizes(
            self.stage.part(SHARE_OF_SIZES),
            plan,
            self.calibration.speeds_of(finding),
            finding.train.batch,
            multiple_of=self.calibration.options.multiple_of,
        )
        if found is None:
            return
        race, self._timed = found
        self._know(sizes=(*self.calibration.sizes, race))
        for one in race.sizes:
            told = {"micro_batch": one.micro_batch, "samples_per_s": one.samples_per_s, "ended": one.why or None}
            self.stage.progress.event("size_ended", told)

    def _data_is_heavy(self) -> bool:
        finding = self.calibration.finding()
        speeds = None if finding is None else self.calibration.speeds_of(finding)
        return speeds is not None and speeds.data_is_heavy

    def _rehearse(self) -> None:
        self._phase("rehearsal", "the whole plan, the largest samples included")
        for _ in range(TRIES):
            plan = self.plan()
            known = rehearsal_of(self.calibration, plan)
            if known is not None and known.fits:
                return
            if known is not None:
                break
            report, run = self.stage.rehearse(plan)
            if not tells(report.outcome) or isinstance(report.outcome, Suspect):
                report, run = self.stage.rehearse(plan)  # an accident, or a crash that may be one: once more
            rates = () if report.times is None else report.times.eval_samples_per_s
            rehearsal = Rehearsal(
                settings=settings_of(plan),
                micro_batches_run=run,
                outcome=report.outcome,
                evaluating=report.evaluating and not isinstance(report.outcome, Fits),
                wait_share=None if report.times is None else report.times.wait_share,
                eval_samples_per_s=rates[-1] if rates else None,
                eval_samples_per_s_at_micro_batch=rates[0] if len(rates) > 1 else None,
                wall_s=report.wall_s,
            )
            self._know(rehearsals=(*self.calibration.rehearsals, rehearsal))
            outcome = report.outcome
            self.stage.progress.event(
                "rehearsed",
                {
                    "effective_batch": plan.effective_batch,
                    "micro_batch": plan.micro_batch,
                    "outcome": outcome.kind,
                    "detail": None if rehearsal.fits else said(outcome),
                    "peak_bytes": outcome.peak.held_on(plan.device) if isinstance(outcome, Fits) else None,
                    "budget_bytes": plan.budget_bytes,
                    "samples_per_s": outcome.samples_per_s if isinstance(outcome, Fits) else None,
                },
            )
            if rehearsal.fits:
                return
            what = f"evaluation at {plan.eval_batch}" if rehearsal.evaluating else f"micro-batch {plan.micro_batch}"
            self._note(f"the rehearsal failed at {what}: {said(outcome)}")
        self.undone.append(f"{OF_THE_REHEARSAL} of no plan went well")

    def _attribute(self) -> None:
        plan = self.plan()
        # Who asks for the largest batch does not ask what is gained.
        if plan.objective == "memory" or plan.status != "verified" or self.stage.left_s() <= 0:
            return
        self._phase("attribution", "each knob as PyTorch has it, in turn")
        attribution = attribute(self.stage, self.calibration, plan)
        if attribution is None:
            return
        self._know(attribution=attribution)
        self.stage.progress.event(
            "attributed",
            {"gain": attribution.gain, **{one.knob: one.samples_per_s for one in attribution.knobs}},
        )

    def _none_left(self, what: str) -> bool:
        if self.stage.left_s() > 0:
            return False
        self.undone.append(f"{what}: no time was left")
        return True

    def _know(self, **update: object) -> None:
        self.calibration = self.calibration.model_copy(update=update)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.stage.progress.event("note", {"text": text})

    def _phase(self, name: str, why: str) -> None:
        self.stage.progress.event("phase", {"phase": name, "device": self.calibration.chosen_device, "why": why})

    def _tell(self, finals: Finals) -> None:
        for one in finals.finalists:
            if one.samples_per_s is not None:
                self.stage.progress.event(
                    "finalist_ended",
                    {
                        "intra_op_threads": one.intra_op_threads,
                        "num_workers": one.num_workers,
                        "samples_per_s": one.samples_per_s,
                        "ended": one.why or None,
                    },
                )
