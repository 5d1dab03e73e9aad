"""Real probes of real tasks in fenced children."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.core.errors import GuardError, NothingFits, UsageError, UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.guard.outcome import Fits, KilledFromOutside, Outcome, OutOfMemory, Suspect, TimedOut, UserCodeFailed, WorkerDied
from batchcal.machine.allocator import available
from batchcal.measure.children import launchers, runner
from batchcal.measure.children.probe import ProbeRequest
from batchcal.measure.search.prior import Prior
from batchcal.workload.spec.reference import Scalar
from tests.support.children import REPOSITORY, fitting, probing, request

pytestmark = [pytest.mark.child, pytest.mark.usefixtures("zygote")]

HANDWRITING = "batchcal.workload.examples.handwriting:task"
OTHER = next((policy.name for policy in available() if policy.name not in {"default", "retain"}), "")
"""A policy whose processes need an environment of their own."""
needs_another_policy = pytest.mark.skipif(not OTHER, reason="needs huge pages or another allocator")

PLAIN = """
import json, sys
import torch
torch.set_num_threads(1)
from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.reference import TaskReference
spec, batch, arguments = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
task = load_task(TaskReference(spec=spec, directory=".", arguments=arguments), device="cpu")
loader = torch.utils.data.DataLoader(task.train_data, batch_size=batch, collate_fn=task.collate_fn)
task.model.train()
for step, samples in enumerate(loader):
    task.loss(task.model, samples).backward()
    task.optimizer.step()
    task.optimizer.zero_grad()
    if step == 3:
        break
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print((int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0])) * 1024)
"""


def plain_peak(spec: str, batch: int, **arguments: Scalar) -> int:
    """Most anonymous bytes of a training that uses nothing of our engine."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, spec, str(batch), json.dumps(arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.smoke("job:batchcal.measure.children.examine_job:examine")
def test_an_examination_returns_facts_and_curves_of_the_handwriting_example() -> None:
    with probing(HANDWRITING) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
    facts = examination.facts
    assert facts.train_samples is not None
    assert facts.eval_samples is not None
    assert facts.train_samples > facts.eval_samples > 100
    assert facts.parameters > 10_000
    assert facts.parameter_bytes == 4 * facts.parameters
    assert "Adam" in facts.optimizer
    assert facts.batch_bytes_per_sample >= 28 * 28 * 4
    assert facts.dataset_pickle_bytes is not None
    assert facts.dataset_pickle_bytes < 1024
    assert 60 * MIB < examination.base_bytes < 700 * MIB
    assert examination.base_accelerator_bytes is None
    assert examination.shape_source == "fake-tensor"
    assert examination.samples_per_s > 1
    for mode in ("train", "eval"):
        points = examination.shapes[mode]
        assert len(points) >= 4
        assert [point.batch for point in points] == sorted({point.batch for point in points})
        assert all(low.bytes < high.bytes for low, high in itertools.pairwise(points))


@pytest.mark.smoke("job:batchcal.measure.children.probe_job:probe", "outcome:fits")
def test_a_probe_measures_the_same_memory_as_a_plain_training_loop() -> None:
    with probing(HANDWRITING) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        report = probe.measure(request(256))
    fits = fitting(report)
    plain = plain_peak(HANDWRITING, 256)
    assert fits.peak.demand_bytes == pytest.approx(plain, rel=0.2)  # glibc: either of them may be 8 % off its own middle
    assert report.isolation.launcher == "zygote"
    assert {"prediction", "watchdog", "deadline", "rlimit-data", "oom-score", "own-group"} <= set(report.isolation.fence)
    assert report.isolation.missing == ()
    assert 4 <= fits.steps <= 8
    assert fits.samples_per_s == pytest.approx(256 / fits.step_s)
    assert report.wall_s >= fits.step_s * fits.steps
    prior = Prior.of("cpu", "default")
    predicted = MemoryModel(
        base_bytes=examination.base_bytes,
        ratio=prior.ratio,
        shape=prior.shape(examination.shapes["train"]),
        source=examination.shape_source,
    ).predict(256)
    assert predicted == pytest.approx(fits.peak.demand_bytes, rel=0.25)


def test_a_probe_that_ran_above_its_budget_is_out_of_memory_with_its_peak() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        fits = fitting(probe.measure(request(128)))
        outcome = probe.measure(request(128, budget=fits.peak.demand_bytes - 40 * MIB, allowed=GIB)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "budget"
    assert "it ran, but used" in outcome.detail
    assert outcome.peak is not None
    assert outcome.peak.demand_bytes == pytest.approx(fits.peak.demand_bytes, rel=0.1)


def test_the_fence_stops_a_far_too_large_probe_and_the_next_probe_works() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        outcome = probe.measure(request(2000, budget=800 * MIB)).outcome
        after = probe.measure(request(16)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "fence"
    assert isinstance(after, Fits)


@pytest.mark.smoke
def test_an_evaluation_after_a_training_step_needs_less_memory() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        training = fitting(probe.measure(request(200)))
        alone = fitting(probe.measure(request(200, mode="eval")))
        after = fitting(probe.measure(request(200, mode="eval", train_batch=200)))
    assert alone.peak.demand_bytes < 0.8 * training.peak.demand_bytes
    assert alone.peak.demand_bytes <= after.peak.demand_bytes + 16 * MIB
    assert after.peak.begin_bytes is not None


def with_evaluation(batch: int) -> ProbeRequest:
    return request(batch).model_copy(update={"evaluation_steps": 3})


def test_an_evaluation_measures_the_same_in_the_training_process_and_alone() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        both = probe.measure(with_evaluation(200))
        training = fitting(probe.measure(request(200)))
        after = fitting(probe.measure(request(200, mode="eval", train_batch=200)))
    evaluation = both.evaluation
    assert isinstance(evaluation, Fits)
    assert evaluation.steps >= 3
    assert fitting(both).peak.demand_bytes == pytest.approx(training.peak.demand_bytes, rel=0.1)
    assert evaluation.peak.demand_bytes == pytest.approx(after.peak.demand_bytes, rel=0.1)
    assert evaluation.peak.begin_bytes is not None


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("raises", UserCodeFailed),
        ("exits", UserCodeFailed),
        ("segfaults", Suspect),
        ("allocates", OutOfMemory),
        ("hangs", TimedOut),
    ],
)
def test_a_failed_evaluation_keeps_the_training_measurement(way: str, kind: type[Outcome]) -> None:
    with probing("failing_evaluation", way=way) as probe:
        report = probe.measure(with_evaluation(100).model_copy(update={"deadline_s": 5.0 if way == "hangs" else 60.0}))
    fitting(report)
    assert isinstance(report.evaluation, kind), report.evaluation


@needs_another_policy
def test_the_processes_of_expected_policies_start_during_the_examination() -> None:
    with probing("wide", repeats=64, own_zygote=True, above_bytes=8 * GIB) as probe:
        probe.expect(("default", OTHER), GIB)
        probe.examine("cpu", "default", GIB, 20.0)
        started = dict(probe._launchers._starting)
        assert set(started) == {OTHER}
        probe.prepare(("default", OTHER), GIB)
        assert probe._launchers.running[OTHER] is started[OTHER]
        assert not probe._launchers.are_starting
        assert isinstance(probe.measure(request(200, allocator=OTHER)).outcome, Fits)


@needs_another_policy
def test_no_process_of_another_policy_starts_without_free_memory() -> None:
    with probing("wide", repeats=64, own_zygote=True, above_bytes=GIB) as probe:
        probe.expect(("default", OTHER), GIB)
        probe.examine("cpu", "default", GIB, 20.0)
        assert not probe._launchers.are_starting


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_of_workers_and_their_batches_is_measured(workers: int) -> None:
    with probing("wide", repeats=32) as probe:
        report = probe.measure(request(2000, samples=3, workers=workers))
    fits = fitting(report)
    with probing("wide", repeats=32) as probe:
        alone = fitting(probe.measure(request(2000, samples=3)))
    # Each worker is a process that writes to its pages, and keeps batches of 2 MiB ready.
    assert fits.peak.demand_bytes > alone.peak.demand_bytes + workers * 3 * MIB
    assert "rlimit-data" in report.isolation.missing  # it would hold for each process alone


@pytest.mark.smoke("outcome:worker-died")
def test_a_dead_worker_gives_the_worker_died_outcome() -> None:
    with probing("broken_workers") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        outcome = probe.measure(request(8, workers=1)).outcome
    assert isinstance(outcome, WorkerDied)


def test_a_probe_without_an_examination_finds_the_largest_samples() -> None:
    with probing("wide", repeats=8, samples=50) as probe:
        assert fitting(probe.measure(request(20))).steps >= 3


def test_a_stream_is_examined_and_run() -> None:
    with probing("stream") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        fits = fitting(probe.measure(request(64)))
    assert examination.facts.train_samples is None
    assert examination.facts.worst_case == "first-samples"
    assert fits.steps >= 3


def test_a_model_that_cannot_be_traced_is_profiled_with_a_note() -> None:
    with probing("untraceable") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
    assert examination.shape_source == "profiler"
    assert any("cannot be traced" in note for note in examination.notes)
    assert examination.shapes["train"][-1].bytes > examination.shapes["eval"][-1].bytes > 0


def test_a_model_that_crashes_during_tracing_is_profiled_with_a_note() -> None:
    with probing("crashing_without_memory") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert isinstance(probe.measure(request(64)).outcome, Fits)
    assert examination.shape_source == "profiler"
    assert any("crashed, hung or ran out of memory" in note for note in examination.notes)


def test_memory_growth_in_every_step_is_reported_in_a_note() -> None:
    with probing("leaking") as probe:
        leak = probe.measure(request(16, samples=8))
    with probing("wide", repeats=8) as probe:
        settled = probe.measure(request(16, samples=8))
    assert any("grew in each of 8 steps, by 16" in note for note in leak.notes), leak
    assert settled.notes == ()


def test_the_bytes_of_the_batch_replace_a_constant_memory_curve() -> None:
    with probing("constant") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
    assert examination.shape_source == "batch-bytes"
    assert any("size of the batch itself" in note for note in examination.notes)
    assert examination.shapes["train"][1].bytes > examination.shapes["train"][0].bytes > 0


def test_a_size_rejected_by_the_task_is_a_user_code_failure() -> None:
    with probing("refusing", above=40) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert isinstance(probe.measure(request(40)).outcome, Fits)
        outcome = probe.measure(request(41)).outcome
    assert examination.facts.parameters > 0
    assert isinstance(outcome, UserCodeFailed)
    assert outcome.error == "ValueError: no more than 40 samples"
    assert "tests/measure/tasks.py" in outcome.traceback
    assert outcome.phase == "measure"


@pytest.mark.smoke("job:batchcal.measure.children.scout_job:scout")
def test_one_child_tries_many_sizes_and_returns_the_sizes_that_ran() -> None:
    with probing("refusing", above=40) as probe:
        assert probe.sizes_that_run("cpu", "default", (64, 41, 40, 7, 32), 20.0) == (40, 7, 32)


def test_a_task_that_accepts_at_most_two_samples_is_examined() -> None:
    with probing("refusing", above=2) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert isinstance(probe.measure(request(2)).outcome, Fits)
        assert isinstance(probe.measure(request(3)).outcome, UserCodeFailed)
    assert examination.samples_per_s > 0
    assert examination.shapes["train"][1].bytes > examination.shapes["train"][0].bytes


def test_a_task_killed_by_a_signal_is_killed_from_outside() -> None:
    with probing("dying") as probe:
        assert probe.measure(request(16)).outcome == KilledFromOutside(signal=9)


def test_a_step_that_hangs_times_out_at_its_deadline_with_its_location() -> None:
    with probing("hanging") as probe:
        outcome = probe.measure(request(128, deadline_s=0.1)).outcome
    assert isinstance(outcome, TimedOut)
    assert outcome.phase == "measure"
    assert outcome.limit_s == 5.0  # nothing could be said of a shorter one
    assert "in hang" in outcome.detail


def test_a_factory_that_fails_is_a_user_code_error_with_a_traceback() -> None:
    with probing("failing") as probe, pytest.raises(UserCodeError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "FileNotFoundError: no data at /nowhere" in raised.value.what + raised.value.known


def test_a_factory_with_a_missing_argument_is_a_usage_error() -> None:
    with probing("asking_for_a_flag") as probe, pytest.raises(UsageError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "corpus" in str(raised.value)


def test_a_factory_that_hangs_reports_its_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOAD_LIMIT_S", 0.5)
    with probing("sleeping") as probe, pytest.raises(UserCodeError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "did not finish loading within" in raised.value.what
    assert "in sleeping" in raised.value.known


def test_a_task_that_does_not_fit_while_loading_reports_the_budget() -> None:
    with probing("hungry", above_bytes=900 * MIB) as probe, pytest.raises(NothingFits) as raised:
        probe.examine("cpu", "default", 800 * MIB, 20.0)
    assert "while it was loaded" in raised.value.what
    assert "the budget is" in raised.value.known
    assert raised.value.try_


def test_a_killed_examination_is_not_a_user_code_error() -> None:
    with probing("dying_in_load") as probe, pytest.raises(GuardError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "killed-from-outside" in raised.value.known


def test_glibc_policies_share_a_zygote_and_retain_keeps_freed_blocks() -> None:
    """Under `retain`, blocks that were freed stay with the process: a step after a larger one finds them."""
    with probing("wide", repeats=64, own_zygote=True) as probe:
        left: dict[str, int] = {}
        for name in ("default", "retain", "default"):
            training = probe.measure(request(2000, allocator=name).model_copy(update={"evaluation_steps": 3}))
            assert isinstance(training.evaluation, Fits)
            assert training.evaluation.peak.begin_bytes is not None
            left[name] = training.evaluation.peak.begin_bytes
        (launcher,) = probe._launchers.running.values()
        assert probe._launchers.running_for("retain") is launcher
    assert left["retain"] > left["default"] + 100 * MIB


@needs_another_policy
def test_each_allocator_has_its_own_zygote_and_only_one_runs_at_a_time() -> None:
    """One that waits would hold memory that no training does."""
    with probing("wide", repeats=64, own_zygote=True) as probe:
        pids: list[int] = []
        for name in ("default", OTHER):
            assert isinstance(probe.measure(request(200, allocator=name)).outcome, Fits)
            (launcher,) = probe._launchers.running.values()
            assert launcher.overhead_pid is not None
            pids.append(launcher.overhead_pid)
        assert not Path(f"/proc/{pids[0]}").exists()
    assert len(set(pids)) == 2


@needs_another_policy
def test_the_process_of_a_policy_is_kept_if_memory_is_free() -> None:
    """Each start imports torch, which takes seconds."""
    with probing("wide", repeats=64, own_zygote=True, above_bytes=8 * GIB) as probe:
        pids: list[int | None] = []
        for name in ("default", OTHER, "default"):
            small = request(200, allocator=name).model_copy(update={"predicted_bytes": 300 * MIB})
            assert isinstance(probe.measure(small).outcome, Fits)
            pids.append(probe._launchers.running[name].overhead_pid)
        assert set(probe._launchers.running) == {"default", OTHER}
        probe.measure(request(200).model_copy(update={"predicted_bytes": 5 * GIB}))
        assert set(probe._launchers.running) == {"default"}
    assert pids[0] == pids[2] != pids[1]


def test_an_examination_under_another_policy_reuses_facts_and_shapes() -> None:
    with probing("wide", repeats=8, own_zygote=True) as probe:
        first = probe.examine("cpu", "default", GIB, 20.0)
        second = probe.examine("cpu", "retain", GIB, 20.0)
    assert (second.facts, second.shapes, second.shape_source) == (first.facts, first.shapes, first.shape_source)
    assert second.base_bytes > 100 * MIB
    assert second.samples_per_s != first.samples_per_s, "timed anew"


def test_spawn_isolation_is_used_and_recorded_without_a_zygote() -> None:
    with probing("wide", repeats=64, isolation="spawn") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        report = probe.measure(request(100))
    assert examination.shape_source == "fake-tensor"
    assert isinstance(report.outcome, Fits)
    assert report.isolation.launcher == "spawn"


def test_an_unusable_zygote_is_replaced_by_spawn_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unusable:
        def __init__(self, *asked: object) -> None:
            raise GuardError("the process that starts the probes is not usable", known="it has 3 threads")

    monkeypatch.setattr(launchers, "ZygoteLauncher", Unusable)
    notes: list[str] = []
    with probing("wide", repeats=8, notes=notes, own_zygote=True) as probe:
        report = probe.measure(request(10))
    assert report.isolation.launcher == "spawn"
    (note,) = notes
    assert note.startswith("the process that starts the probes is not usable: it has 3 threads; every run under default starts")


def test_a_zygote_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with probing("wide", repeats=8, own_zygote=True) as probe:
        assert isinstance(probe.measure(request(10)).outcome, Fits)
        pid = probe._launchers.get("default").overhead_pid
        assert pid is not None
        os.kill(pid, 9)
        assert isinstance(probe.measure(request(10)).outcome, Fits)
        assert probe._launchers.get("default").overhead_pid != pid


def test_the_free_memory_of_the_machine_lowers_the_limit_of_a_probe() -> None:
    """The group would be full before the budget is used up: the fence stands nearer."""
    with probing("wide", above_bytes=700 * MIB) as probe:
        outcome = probe.measure(request(2000, budget=3 * GIB)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source in ("fence", "watchdog")
