"""The end of a calibration: its plan is run whole, made smaller where that fails, and what it gains is told apart."""

from __future__ import annotations

from pathlib import Path

from batchcal.core.errors import Interrupted, UserCodeError
from batchcal.core.units import GIB
from batchcal.guard.outcome import Fits, OutOfMemory, Peak, UserCodeFailed
from batchcal.measure.children.probe import Observation, RehearsalRequest, TimingReport, TimingRequest
from batchcal.measure.options import options
from batchcal.measure.result import Need
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from tests.support.probes import FAKE, Harness, ScriptedProbe, saved

BY_SETTING = Need(by_setting=True)


class Stage(ScriptedProbe):
    """Tells which plans were run; retain is twice as fast as the other policies, and small micro-batches are faster."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[Plan] = []
        self.rehearsed: list[Plan] = []

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        report = super().time_sizes(request)
        factor = 0.5 if request.allocator == "retain" else 1.0
        slower = [
            time.model_copy(update={"step_s": time.step_s * factor * (1 + time.micro_batch / 100), "threads": time.threads})
            for time in report.times
        ]
        return TimingReport(times=tuple(slower))

    def rehearse(self, request: RehearsalRequest) -> Observation:
        self.plans.append(request.plan)
        if request.worst_case:
            self.rehearsed.append(request.plan)
        report = super().rehearse(request)
        if not isinstance(report.outcome, Fits):
            return report
        outcome = report.outcome.model_copy(update={"samples_per_s": self.rate(request.plan)})
        return report.model_copy(update={"outcome": outcome})

    def rate(self, plan: Plan) -> float:
        """Of whole optimizer steps: as the laps say."""
        return (2000.0 if plan.allocator == "retain" else 1000.0) / (1 + plan.micro_batch / 100)


def test_the_plan_of_a_calibration_is_rehearsed_and_verified(harness: Harness) -> None:
    probe = Stage()
    calibration = harness.calibrate(probe, options(GIB, effective_batch=256)).calibration
    plan = make_plan(calibration)
    assert plan.status == "verified"
    assert plan.allocator == "retain"
    assert plan.micro_batch < plan.effective_batch == 256
    assert [one.micro_batches for one in probe.rehearsed] == [plan.micro_batches]
    assert make_plan(calibration, objective="memory").status == "derived"
    assert calibration.status == "complete"


def test_a_race_corrects_a_micro_batch_chosen_from_wrong_timings(harness: Harness) -> None:
    class Misjudged(Stage):
        def time_sizes(self, request: TimingRequest) -> TimingReport:
            report = super().time_sizes(request)
            if not request.rounds:
                return report
            return TimingReport(
                times=tuple(
                    time.model_copy(update={"step_s": time.micro_batch / (1000.0 + time.micro_batch)}) for time in report.times
                )
            )

    calibration = harness.calibrate(Misjudged()).calibration
    finding = calibration.finding()
    assert finding is not None
    race = calibration.sizes_of(finding)
    assert race is not None
    assert race.fastest(race.effective_batch) == finding.train.batch
    plan = make_plan(calibration)
    assert (plan.micro_batch, plan.accumulation_steps, plan.status) == (finding.train.batch, 1, "verified")
    smaller = make_plan(calibration, effective_batch=40)
    assert max(smaller.micro_batches) <= 40


def test_the_gain_over_the_defaults_needs_one_extra_run(harness: Harness) -> None:
    probe = Stage()
    told = harness.calibrate(probe, options(GIB, effective_batch=256)).calibration.attribution
    assert told is not None
    assert told.gain is not None and told.gain > 1.5
    assert not told.is_by_knob
    assert [knob.samples_per_s for knob in told.knobs] == [None] * len(told.knobs)
    chosen = probe.rehearsed[0]
    afterwards = probe.plans[probe.plans.index(chosen) + 1 :]
    assert [(plan.allocator, plan.micro_batch) for plan in afterwards] == [("default", chosen.effective_batch)]


def test_the_gain_of_each_setting_is_measured_on_request(harness: Harness) -> None:
    probe = Stage()
    told = harness.calibrate(probe, options(GIB, effective_batch=256), need=BY_SETTING).calibration.attribution
    assert told is not None
    assert told.is_by_knob
    assert {"allocator", "micro_batch"} <= {knob.knob for knob in told.knobs}
    timed = {(plan.allocator, plan.micro_batch) for plan in probe.plans}
    chosen = probe.rehearsed[0]
    assert {("default", chosen.micro_batch), ("retain", chosen.effective_batch)} <= timed
    assert all(plan.effective_batch == sum(plan.micro_batches) == chosen.effective_batch for plan in probe.plans)


def test_the_gain_of_each_setting_is_added_to_a_valid_calibration(harness: Harness) -> None:
    asked = options(GIB, effective_batch=256)
    first = harness.calibrate(Stage(), asked).calibration
    probe = Stage()
    second = harness.calibrate(probe, asked, need=BY_SETTING).calibration
    assert second.attribution is not None and second.attribution.is_by_knob
    assert (second.findings, second.rehearsals, second.measurements) == (first.findings, first.rehearsals, first.measurements)
    assert probe.rehearsed == []
    assert saved(harness).attribution == second.attribution
    assert harness.calibrate(None, asked, need=BY_SETTING).fresh


def test_the_gain_of_each_setting_is_measured_for_the_calibrated_plan(harness: Harness) -> None:
    harness.calibrate(Stage(), options(GIB, effective_batch=256))
    calibration = harness.calibrate(Stage(), options(GIB), need=BY_SETTING).calibration
    assert calibration.effective_batch == 256
    assert calibration.attribution is not None
    assert calibration.attribution.effective_batch == 256
    assert calibration.attribution.rounds == 2


def test_a_plan_that_runs_out_of_memory_is_reduced_and_rehearsed_again(harness: Harness) -> None:
    class TooMuch(Stage):
        def rehearse(self, request: RehearsalRequest) -> Observation:
            report = super().rehearse(request)
            if not request.worst_case or len(self.rehearsed) > 1:
                return report
            held = Peak(demand_bytes=int(request.budget_bytes * 1.1))
            over = OutOfMemory(source="budget", detail="it ran, but held too much", peak=held)
            return Observation(outcome=over, isolation=FAKE, times=None, wall_s=1.0)

    probe = TooMuch()
    calibration = harness.calibrate(probe, options(GIB, objective="memory", effective_batch=512)).calibration
    first, second = probe.rehearsed
    assert second.micro_batch < 0.9 * first.micro_batch
    assert second.effective_batch == first.effective_batch
    finding = calibration.finding()
    assert finding is not None
    assert second.micro_batch <= finding.train.batch < first.micro_batch
    assert finding.train.ruled_out == first.micro_batch
    assert make_plan(calibration, objective="memory").status == "verified"
    assert any("the rehearsal failed at micro-batch" in note for note in calibration.notes)


def test_only_the_eval_batch_is_reduced_if_evaluation_runs_out_of_memory(harness: Harness) -> None:
    class Evaluating(Stage):
        def rehearse(self, request: RehearsalRequest) -> Observation:
            report = super().rehearse(request)
            if not request.worst_case or len(self.rehearsed) > 1:
                return report
            return Observation(outcome=OutOfMemory(source="fence"), isolation=FAKE, times=None, evaluating=True, wall_s=1.0)

    probe = Evaluating()
    calibration = harness.calibrate(probe).calibration
    first, second = probe.rehearsed
    assert second.micro_batches == first.micro_batches
    assert second.eval_batch == first.eval_batch // 2
    plan = make_plan(calibration)
    assert (plan.status, plan.eval_batch) == ("verified", second.eval_batch)
    assert plan.why["eval_batch"] == "half of the size whose rehearsal failed"


def test_a_plan_whose_rehearsal_fails_is_not_verified(harness: Harness) -> None:
    class Failing(Stage):
        def rehearse(self, request: RehearsalRequest) -> Observation:
            super().rehearse(request)
            return Observation(
                outcome=UserCodeFailed(phase="measure", error="ValueError: no"), isolation=FAKE, times=None, wall_s=1.0
            )

    result = harness.calibrate(Failing())
    calibration = result.calibration
    assert isinstance(result.stopped, UserCodeError)
    assert result.stopped.what == "ValueError: no"
    plan = make_plan(calibration)
    assert plan.status == "derived"
    assert plan.why["status"] == "its rehearsal failed: user-code-failed"
    assert calibration.status == "unsettled"
    assert calibration.attribution is None


def test_a_plan_is_not_rehearsed_when_no_time_is_left(harness: Harness) -> None:
    probe = ScriptedProbe(clock=harness.clock, takes_s=70.0)
    calibration = harness.calibrate(probe).calibration
    assert calibration.rehearsals == ()
    assert any("no time was left" in left.text for left in calibration.undone)
    assert make_plan(calibration).status == "derived"


def test_an_interrupted_rehearsal_keeps_the_search_results(harness: Harness) -> None:
    class Interrupting(Stage):
        def rehearse(self, request: RehearsalRequest) -> Observation:
            raise Interrupted(2)

    result = harness.calibrate(Interrupting())
    assert result.stopped is not None
    calibration = saved(harness, Path(harness.path))
    assert calibration.finding() is not None
    assert calibration.status == "unsettled"
    assert calibration.finals != ()


def test_a_verified_plan_predicts_its_measured_rate(harness: Harness) -> None:
    calibration = harness.calibrate(Stage()).calibration
    (rehearsal,) = calibration.rehearsals
    assert isinstance(rehearsal.outcome, Fits)
    assert make_plan(calibration).predicted_samples_per_s == rehearsal.outcome.samples_per_s
