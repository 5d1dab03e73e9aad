"""Threads and workers: what conservation of work prunes, and who wins among the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from batchcal.calibration.records.rehearsal import Finalist
from batchcal.calibration.records.speed import StepTime
from batchcal.core.clock import ManualClock
from batchcal.core.progress import Recorded
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits, Outcome, Peak, WorkerDied
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import Observation, PlanTimes, RehearsalRequest
from batchcal.measure.pipeline.candidates import CandidateLimits
from batchcal.measure.rehearsal.finals import entries, race_finals, thread_ladder
from batchcal.measure.rehearsal.loading import Loading, other_start_method
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.rehearsal.work_bound import WorkBound
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from tests.support.calibrations import MADE_AT, a_calibration, step_time
from tests.support.probes import FAKE

ROOM = CandidateLimits(cores=2.0, shm_bytes=GIB, memory_bytes=GIB, worker_bytes=48 * MIB, open_files=1024, processes=None)
LOADING = Loading(room=ROOM, batch_bytes=MIB)


def work(fetch_s: float, rest_s: dict[int, float], *, cpu: float = 1.0, cores: float = 2.0, on_host: bool = True) -> WorkBound:
    """A micro-batch of one sample: `fetch_s` to fetch, of which `cpu` computing, and by threads what the rest takes."""
    times = {
        threads: step_time(1, fetch_s + rest, threads=threads, fetch_s=fetch_s, fetch_cpu_s=fetch_s * cpu)
        for threads, rest in rest_s.items()
    }
    return WorkBound(times, cores, on_host)


def left_in(finalists: list[Finalist]) -> set[tuple[int, int]]:
    return {(one.intra_op_threads, one.num_workers) for one in finalists if not one.left}


@pytest.mark.parametrize(("most", "ladder"), [(1, (1,)), (2, (2, 1)), (8, (8, 4, 1)), (3, (3, 1))])
def test_thread_counts_are_the_maximum_its_half_and_one(most: int, ladder: tuple[int, ...]) -> None:
    assert thread_ladder(most) == ladder


def test_the_time_bound_covers_step_cores_and_workers() -> None:
    assert work(1.0, {2: 4.0, 1: 8.0}).least_s(2, 1) == pytest.approx(4.5), "nine core-seconds on two cores"
    assert work(1.0, {2: 4.0}, on_host=False).least_s(2, 1) == pytest.approx(4.0), "the step is not on the cores"
    assert work(9.0, {2: 1.0, 1: 1.0}, cpu=0.0).least_s(1, 2) == pytest.approx(4.5), "two workers that wait"
    assert work(9.0, {2: 1.0, 1: 1.0}).least_s(1, 2) == pytest.approx(5.0), "two workers that compute"


def test_light_data_needs_no_race() -> None:
    assert left_in(entries(work(0.1, {2: 1.0, 1: 1.9}), LOADING)) == {(2, 0)}


def test_fewer_threads_win_if_more_threads_are_not_faster() -> None:
    assert left_in(entries(work(0.0, {2: 1.0, 1: 1.02}), LOADING)) == {(1, 0)}


@pytest.mark.parametrize("disturbed", [2, 1])
def test_fewer_threads_with_disturbed_timings_must_win_a_race(disturbed: int) -> None:
    quiet = work(0.0, {2: 2.0, 1: 1.5})
    times = dict(quiet.times)
    times[disturbed] = times[disturbed].model_copy(update={"foreign_share": 0.4})
    assert left_in(entries(quiet, LOADING)) == {(1, 0)}
    assert left_in(entries(replace(quiet, times=times), LOADING)) == {(1, 0), (2, 0)}


def test_heavy_data_is_raced_with_the_most_promising_workers() -> None:
    runners = left_in(entries(work(2.0, {2: 1.0, 1: 1.6}), LOADING))
    assert (2, 0) in runners
    assert len(runners) == 4
    assert all(workers for threads, workers in runners - {(2, 0)})


@pytest.mark.parametrize(
    ("loading", "runners"),
    [
        (replace(LOADING, pinned_workers=0), {(2, 0)}),
        (replace(LOADING, pinned_workers=1), {(2, 1)}),
        (replace(LOADING, stream=True), {(2, 0), (1, 1), (2, 1)}),
        (replace(LOADING, batch_bytes=GIB), {(2, 0)}),
    ],
    ids=["none-asked", "one-asked", "stream", "no-shm"],
)
def test_finalists_are_limited_by_options_data_and_machine(loading: Loading, runners: set[tuple[int, int]]) -> None:
    assert left_in(entries(work(2.0, {2: 1.0, 1: 1.6}), loading)) == runners


Rates = Mapping[tuple[int | str, ...], float]


class Loaders(FakeProbe):
    """Each plan has a rate, by threads and workers, or by these and what is unusual of its workers; one that has none dies."""

    def __init__(self, rates: Rates, clock: ManualClock, turn_s: float = 1.0) -> None:
        super().__init__()
        self.rates, self.clock, self.turn_s = rates, clock, turn_s
        self.turns: list[tuple[int | str, ...]] = []

    def rehearse(self, request: RehearsalRequest) -> Observation:
        plan = request.plan
        key: tuple[int | str, ...] = (plan.intra_op_threads, plan.num_workers)
        if plan.prefetch_factor not in (None, 2):
            key += (plan.prefetch_factor or 0,)
        if plan.multiprocessing_context is not None:
            key += (plan.multiprocessing_context,)
        self.turns.append(key)
        self.clock.move(self.turn_s)
        outcome: Outcome = WorkerDied(detail="killed by SIGSEGV")
        if key in self.rates:
            outcome = Fits(peak=Peak(demand_bytes=MIB), steps=1, step_s=1.0, samples_per_s=self.rates[key])
        return Observation(outcome=outcome, isolation=FAKE, times=PlanTimes(wait_share=0.0, eval_samples_per_s=()), wall_s=1.0)


def race(rates: Rates, *, limit_s: float = 60.0, loading: Loading = LOADING) -> tuple[list[Finalist], Loaders, bool]:
    clock = ManualClock(MADE_AT)
    probe = Loaders(rates, clock)
    stage = Stage(probe=probe, clock=clock, progress=Recorded(), until=clock.monotonic() + limit_s)
    finals = race_finals(stage, plan(), work(2.0, {2: 1.0, 1: 1.6}), loading)
    return list(finals.finalists), probe, finals.settled


def plan() -> Plan:
    return make_plan(a_calibration(), effective_batch=64)


def test_the_fastest_measured_loader_wins() -> None:
    (winner, *others), probe, settled = race({(2, 0): 1 / 3.0, (1, 1): 1 / 2.0, (1, 2): 1 / 1.7, (2, 2): 1 / 1.9})
    assert (winner.intra_op_threads, winner.num_workers) == (1, 2)
    assert winner.samples_per_s == pytest.approx(1 / 1.7)
    assert settled
    assert {one.left for one in others if one.samples_per_s is not None} <= {"slower", "behind", ""}
    assert probe.turns.count((2, 0)) <= 3, "what is far slower leaves early"


def test_no_workers_are_used_if_they_are_not_faster() -> None:
    (winner, *_), _, _ = race(dict.fromkeys(((2, 0), (1, 1), (1, 2), (2, 1), (2, 2)), 0.4))
    assert winner.num_workers == 0


def test_a_loader_with_a_dead_worker_leaves_the_race_with_the_reason() -> None:
    (winner, *others), _, _ = race({(2, 0): 0.33})
    assert winner.num_workers == 0
    assert {one.why for one in others if one.left == "failed"} == {"worker-died: killed by SIGSEGV"}


def test_a_race_ended_by_the_time_limit_is_not_settled() -> None:
    finalists, probe, settled = race({(2, 0): 0.33, (1, 1): 0.5, (1, 2): 0.6}, limit_s=1.5)
    assert len(probe.turns) == 2
    assert not settled
    assert any(one.left == "no-time" for one in finalists)


def test_a_loader_that_still_waits_is_tried_with_more_prefetching() -> None:
    # Conservation of work allows 1 / 1.8 with two workers.
    rates: Rates = {(2, 0): 1 / 3.0, (1, 1): 1 / 2.9, (1, 2): 1 / 2.2, (2, 2): 1 / 2.4, (1, 2, 4): 1 / 1.9}
    (winner, *others), probe, settled = race(rates)
    assert (winner.num_workers, winner.prefetch_factor) == (2, 4)
    assert winner.samples_per_s == pytest.approx(1 / 1.9)
    assert settled
    assert [one.prefetch_factor for one in others if (one.intra_op_threads, one.num_workers) == (1, 2)] == [2]
    assert (1, 2, 4) in probe.turns


def test_more_prefetching_is_used_only_if_it_is_faster() -> None:
    rates: Rates = {(2, 0): 1 / 3.0, (1, 1): 1 / 2.9, (1, 2): 1 / 2.2, (2, 2): 1 / 2.4, (1, 2, 4): 1 / 2.2}
    (winner, *_), probe, _ = race(rates)
    assert (1, 2, 4) in probe.turns
    assert winner.prefetch_factor == 2


def test_a_loader_that_does_not_wait_is_not_tried_with_more_prefetching() -> None:
    rates: Rates = {(2, 0): 1 / 3.0, (1, 1): 1 / 2.9, (1, 2): 1 / 1.82, (2, 2): 1 / 2.4}
    (winner, *_), probe, _ = race(rates)
    assert winner.samples_per_s == pytest.approx(1 / 1.82)
    assert (1, 2, 4) not in probe.turns


def test_workers_that_die_when_forked_use_another_start_method() -> None:
    rates: Rates = {(2, 0): 1 / 3.0, (1, 2, "forkserver"): 1 / 1.8, (2, 2, "forkserver"): 1 / 1.8}
    able = replace(LOADING, other_start="forkserver", other_worker_bytes=160 * MIB)
    (winner, *others), _, _ = race(rates, loading=able)
    assert winner.multiprocessing_context == "forkserver"
    assert winner.num_workers == 2
    assert "worker-died: killed by SIGSEGV" in {one.why for one in others}


@pytest.mark.parametrize(
    "loading",
    [LOADING, replace(LOADING, other_start="forkserver", other_worker_bytes=GIB)],
    ids=["data that does not pickle", "no memory for them"],
)
def test_another_start_method_is_not_tried_if_it_cannot_work(loading: Loading) -> None:
    (winner, *_), probe, _ = race({(2, 0): 1 / 3.0}, loading=loading)
    assert winner.num_workers == 0
    assert all(len(turn) == 2 for turn in probe.turns)


def test_a_small_dev_shm_reduces_prefetching() -> None:
    tight = replace(LOADING, room=ROOM.model_copy(update={"shm_bytes": 5 * MIB}))  # two workers: 3 batches, not 5
    found = {(one.num_workers, one.prefetch_factor) for one in entries(work(2.0, {2: 1.0, 1: 1.6}), tight) if not one.left}
    assert found == {(0, None), (1, 2), (2, 1)}


@pytest.mark.parametrize(
    ("methods", "pickles", "on_host", "other"),
    [
        (["fork", "spawn", "forkserver"], True, True, "forkserver"),
        (["fork", "spawn", "forkserver"], False, True, None),
        (["forkserver", "fork", "spawn"], False, True, "fork"),
        (["forkserver", "fork", "spawn"], True, False, None),
        (["spawn", "fork", "forkserver"], True, True, None),
        (["spawn"], True, True, None),
    ],
)
def test_the_other_start_method_depends_on_pickling_and_device(
    methods: list[str], pickles: bool, on_host: bool, other: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: methods)
    assert other_start_method(pickles=pickles, on_host=on_host) == other


def test_a_better_step_time_keeps_its_own_fetch_time() -> None:
    once: StepTime = step_time(8, 0.2, threads=1, fetch_s=0.1)
    assert once.or_better(step_time(8, 0.1, threads=1, fetch_s=0.02)).fetch_s == 0.02
