"""Each outcome is told what it means for the size, and a run that told nothing is repeated once."""

from __future__ import annotations

import pytest

from batchcal.calibration.schema import Measurement, Mode
from batchcal.core.errors import UserCodeError
from batchcal.core.progress import Recorded
from batchcal.core.units import MIB
from batchcal.guard.outcome import (
    Infrastructure,
    KilledFromOutside,
    Outcome,
    OutOfMemory,
    Peak,
    Swapping,
    TimedOut,
    UserCodeFailed,
    WorkerDied,
)
from batchcal.measure.capacity.attempts import Attempts, SearchTarget
from batchcal.measure.outcomes import decides, detail
from batchcal.measure.search.capacity import SizeRequest
from tests.support.probes import BROKEN, FAILED, FAKE, KILLED, SUSPECT, ScriptedProbe, fits

BUDGET = 800 * MIB
PLACE = SearchTarget("cpu", "default", "train", BUDGET, samples=8)
ASK = SizeRequest(64, "scale", "because", 330 * MIB)
TIMED_OUT = TimedOut(phase="measure", limit_s=7.0, detail="in step")
WORKER_DIED = WorkerDied(detail="DataLoader worker (pid 7) exited unexpectedly\nmore")
SWAPPED = Swapping(swapped_bytes=64 * MIB)


class Kept(Attempts):
    """Attempts over a script, with what was kept."""

    def __init__(self, *outcomes: Outcome, past: tuple[Measurement, ...] = ()) -> None:
        left = list(outcomes)
        self.kept: list[Measurement] = []
        self.told = Recorded()
        self.scripted = ScriptedProbe(lambda request, time: left.pop(0) if left else None)
        super().__init__(self.scripted, self.told, self.kept.append, past=past)


def a_measurement(outcome: Outcome, *, mode: Mode = "train") -> Measurement:
    return Measurement(
        sequence=1,
        phase="scale",
        mode=mode,
        device="cpu",
        allocator="default",
        batch=64,
        predicted_bytes=None,
        allowed_bytes=None,
        outcome=outcome,
        isolation=FAKE,
        wall_s=1.0,
    )


@pytest.mark.parametrize("first", [SUSPECT, KILLED, BROKEN, WORKER_DIED], ids=lambda outcome: outcome.kind)
def test_an_inconclusive_run_is_repeated_once_and_the_second_result_counts(first: Outcome) -> None:
    attempts = Kept(first)
    measured = attempts.run(ASK, PLACE, deadline_s=10)
    assert measured.outcome.kind == "fits"
    assert [(one.outcome.kind, one.attempt, one.sequence) for one in attempts.kept] == [(first.kind, 1, 1), ("fits", 2, 2)]
    assert attempts.started == 2


@pytest.mark.parametrize("outcome", [SUSPECT, KILLED, BROKEN, WORKER_DIED], ids=lambda outcome: outcome.kind)
def test_an_inconclusive_run_is_not_repeated_twice(outcome: Outcome) -> None:
    attempts = Kept(outcome, outcome)
    assert attempts.run(ASK, PLACE, deadline_s=10).outcome == outcome
    assert attempts.started == 2


@pytest.mark.parametrize("outcome", [fits(64), SWAPPED, TIMED_OUT, FAILED, OutOfMemory(source="fence")], ids=lambda o: o.kind)
def test_a_run_with_a_repeatable_outcome_is_not_repeated(outcome: Outcome) -> None:
    attempts = Kept(outcome)
    assert attempts.run(ASK, PLACE, deadline_s=10).outcome == outcome
    assert attempts.started == 1


def test_a_second_suspect_counts_as_too_big() -> None:
    attempts = Kept(SUSPECT, SUSPECT)
    measured = attempts.run(ASK, PLACE, deadline_s=10)
    assert attempts.verdict(measured, best=None) == ("too-big", None)


def test_a_worker_that_died_twice_is_a_user_code_error_with_a_suggestion() -> None:
    attempts = Kept(WORKER_DIED, WORKER_DIED)
    measured = attempts.run(ASK, PLACE, deadline_s=10)
    with pytest.raises(UserCodeError) as raised:
        attempts.verdict(measured, best=32)
    assert "--workers 0" in raised.value.try_
    assert "pid 7" in raised.value.known


def test_a_failure_before_any_success_is_a_user_code_error_with_a_traceback() -> None:
    with pytest.raises(UserCodeError) as raised:
        Kept().verdict(a_measurement(FAILED), best=None)
    assert raised.value.exit_code == 5
    assert raised.value.what == "ValueError: too many"
    assert raised.value.known.startswith("Traceback")
    assert raised.value.try_ == "fewer"


def test_a_user_code_error_without_a_traceback_shows_the_output() -> None:
    outcome = UserCodeFailed(phase="load", error="exit code 3", output="  no such file\n")
    with pytest.raises(UserCodeError) as raised:
        Kept().verdict(a_measurement(outcome), best=None)
    assert raised.value.known == "no such file"


def test_a_failure_above_a_working_size_is_a_rejected_size() -> None:
    attempts = Kept()
    assert attempts.verdict(a_measurement(FAILED), best=32) == ("refused", None)
    assert attempts.notes == ["the task's own code refuses batch 64: ValueError: too many"]


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (fits(64, 300), ("fits", 300)),
        (OutOfMemory(source="fence", peak=Peak(demand_bytes=5)), ("too-big", None)),
        (OutOfMemory(source="budget", peak=Peak(demand_bytes=5)), ("too-big", 5)),
        (OutOfMemory(source="budget"), ("too-big", None)),
        (SWAPPED, ("too-big", None)),
        (TIMED_OUT, ("unknown", None)),
        (KILLED, ("unknown", None)),
        (BROKEN, ("unknown", None)),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_only_memory_outcomes_change_a_bound(outcome: Outcome, verdict: tuple[str, int | None]) -> None:
    assert Kept().verdict(a_measurement(outcome), best=None) == verdict


def test_a_kill_by_the_kernel_is_recorded_as_a_note() -> None:
    attempts = Kept()
    assert attempts.verdict(a_measurement(OutOfMemory(source="kernel")), best=None)[0] == "too-big"
    assert "the kernel's OOM killer fired at batch 64" in attempts.notes[0]


@pytest.mark.parametrize(("demand", "told"), [(300, 300), (211, 211), (209, None)])
def test_an_evaluation_below_the_memory_left_by_training_has_no_peak(demand: int, told: int | None) -> None:
    measured = a_measurement(fits(64, demand, begin_bytes=200), mode="eval")
    assert Kept().verdict(measured, best=None) == ("fits", told)


def test_a_repeated_note_is_recorded_once() -> None:
    attempts = Kept()
    attempts.note("look")
    attempts.note("look")
    assert attempts.notes == ["look"]
    assert attempts.told.events == [("note", {"text": "look"})]


def test_the_fence_is_slightly_above_the_budget() -> None:
    attempts = Kept()
    measured = attempts.run(ASK, PLACE, deadline_s=12.5)
    request = attempts.scripted.requests[0]
    assert request.budget_bytes == BUDGET
    assert BUDGET < request.allowed_bytes == measured.allowed_bytes
    assert (request.batch, request.samples, request.deadline_s, request.train_batch) == (64, 8, 12.5, None)


def test_a_probe_reports_its_start_and_its_end() -> None:
    attempts = Kept(OutOfMemory(source="fence", detail="MemoryError\nat line 3", peak=Peak(demand_bytes=700 * MIB)))
    attempts.run(ASK, PLACE, deadline_s=10)
    (started, first), (ended, last) = attempts.told.events
    assert (started, ended) == ("probe_started", "probe_ended")
    assert first == {"sequence": 1, "phase": "scale", "mode": "train", "batch": 64, "predicted_bytes": 330 * MIB}
    assert last["outcome"] == "out-of-memory"
    assert last["detail"] == "fence: MemoryError"
    assert last["peak_bytes"] == 700 * MIB
    assert last["budget_bytes"] == BUDGET
    assert last["samples_per_s"] is None


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (fits(1), None),
        (OutOfMemory(source="shm", detail=""), "shm: "),
        (FAILED, "ValueError: too many"),
        (SUSPECT, "died by SIGSEGV"),
        (WORKER_DIED, "DataLoader worker (pid 7) exited unexpectedly"),
        (Infrastructure(detail="no zygote"), "no zygote"),
        (TIMED_OUT, "in measure after 7 s"),
        (KilledFromOutside(signal=15), "signal 15"),
        (SWAPPED, "64.0 MiB swapped"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_detail_describes_an_outcome_in_a_few_words(outcome: Outcome, text: str | None) -> None:
    assert detail(outcome) == text


@pytest.mark.parametrize(
    ("outcome", "yes"),
    [(fits(1), True), (OutOfMemory(source="shm"), True), (SWAPPED, True), (SUSPECT, False), (KILLED, False), (TIMED_OUT, False)],
    ids=lambda value: getattr(value, "kind", None),
)
def test_only_fits_and_memory_outcomes_decide_about_a_size(outcome: Outcome, yes: bool) -> None:
    assert decides(outcome) is yes


def past_of(*outcomes: Outcome) -> tuple[Measurement, ...]:
    """What an interrupted calibration left: runs of ASK in PLACE."""
    first = Kept(*outcomes)
    first.run(ASK, PLACE, deadline_s=10)
    return tuple(first.kept)


def test_measurements_of_an_interrupted_calibration_are_reused_and_reported() -> None:
    attempts = Kept(past=past_of(fits(64)))
    assert [one.outcome for one in attempts.recall(PLACE)] == [fits(64)]
    assert (attempts.started, attempts.kept) == (0, [])
    assert [name for name, _ in attempts.told.events] == ["probe_kept"]


@pytest.mark.parametrize("outcome", [SUSPECT, KILLED, TIMED_OUT, FAILED], ids=lambda outcome: outcome.kind)
def test_inconclusive_measurements_are_kept_but_not_reused(outcome: Outcome) -> None:
    attempts = Kept(past=past_of(outcome, outcome))
    assert attempts.recall(PLACE) == []
    assert {one.outcome for one in attempts.measurements} == {outcome}


@pytest.mark.parametrize(
    "place",
    [
        SearchTarget("cuda:0", "default", "train", BUDGET, 8),
        SearchTarget("cpu", "retain", "train", BUDGET, 8),
        SearchTarget("cpu", "default", "eval", BUDGET, 8, train_batch=64),
    ],
    ids=["device", "allocator", "mode"],
)
def test_measurements_of_another_target_are_not_reused(place: SearchTarget) -> None:
    assert Kept(past=past_of(fits(64))).recall(place) == []


@pytest.mark.parametrize(
    ("outcome", "budget", "holds"),
    [
        (fits(64, 700 * MIB), BUDGET - MIB, True),
        (fits(64, 700 * MIB), BUDGET + MIB, True),
        (fits(64, 700 * MIB), 699 * MIB, True),
        (OutOfMemory(source="budget", peak=Peak(demand_bytes=810 * MIB)), BUDGET + MIB, True),
        (OutOfMemory(source="budget", peak=Peak(demand_bytes=810 * MIB)), 810 * MIB, False),
        (OutOfMemory(source="fence"), BUDGET + MIB, True),
        (OutOfMemory(source="fence"), BUDGET - 90 * MIB, True),
        (OutOfMemory(source="fence"), BUDGET + 90 * MIB, False),
        (SWAPPED, BUDGET, True),
        (SWAPPED, BUDGET + 90 * MIB, False),
    ],
)
def test_a_measurement_is_reused_if_the_current_budget_gives_the_same_outcome(outcome: Outcome, budget: int, holds: bool) -> None:
    recalled = Kept(past=past_of(outcome)).recall(SearchTarget("cpu", "default", "train", budget, 8))
    assert bool(recalled) is holds


def test_a_reused_measurement_above_the_current_budget_is_out_of_memory() -> None:
    (recalled,) = Kept(past=past_of(fits(64, 700 * MIB))).recall(SearchTarget("cpu", "default", "train", 699 * MIB, 8))
    assert isinstance(recalled.outcome, OutOfMemory)
    assert recalled.outcome.source == "budget"
    assert recalled.outcome.peak == Peak(demand_bytes=700 * MIB)


def test_a_run_after_reused_measurements_has_a_new_sequence_number() -> None:
    """Else the journal, which knows each number once, would forget it at the next resumption."""
    attempts = Kept(past=past_of(KILLED))
    attempts.run(SizeRequest(128, "verify", "", 1), PLACE, deadline_s=10)
    assert [one.sequence for one in attempts.kept] == [3]
    assert [one.sequence for one in attempts.measurements] == [1, 2, 3]
