"""Real probes of real tasks in fenced children."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from batchcal.calibration.memory_model import MemoryModel
from batchcal.calibration.schema import Mode
from batchcal.core.errors import GuardError, NothingFits, UsageError, UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.guard.allocator import available
from batchcal.guard.ending import Ending
from batchcal.guard.launch import Job, Launcher
from batchcal.guard.outcome import (
    Fits,
    Infrastructure,
    KilledFromOutside,
    OutOfMemory,
    TimedOut,
    UserCodeFailed,
    WorkerDied,
)
from batchcal.guard.run import Limits
from batchcal.guard.watchdog import MemoryGroup
from batchcal.guard.wire import JSON
from batchcal.measure import children
from batchcal.measure.children import ChildProbe
from batchcal.measure.prior import Prior
from batchcal.measure.probe import ProbeReport, ProbeRequest
from batchcal.measure.request import ProbeAnswer, Setting
from batchcal.workload.reference import Scalar, TaskReference

pytestmark = pytest.mark.child

REPOSITORY = Path(__file__).resolve().parents[2]
HANDWRITING = "batchcal.workload.examples.handwriting:task"
ROOM = 4 * GIB


class Fixed:
    """A memory group in which nothing but the child moves: so far below its limit, whatever the neighbours do."""

    def __init__(self, above_bytes: int) -> None:
        self.limit_bytes = GIB + above_bytes

    def hard_bytes(self) -> int:
        return GIB

    def swap_bytes(self) -> int:
        return 0

    def oom_kills(self) -> int | None:
        return None


def setting_of(spec: str, *, workers: int = 0, **arguments: Scalar) -> Setting:
    return Setting(
        reference=TaskReference(
            spec=spec if ":" in spec else f"tests.measure.tasks:{spec}", directory=str(REPOSITORY), arguments=dict(arguments)
        ),
        device="cpu",
        seed=0,
        intra_op_threads=1,
        workers=workers,
        smallest_batch=2,
    )


@contextmanager
def probing(
    spec: str,
    *,
    workers: int = 0,
    above_bytes: int = ROOM,
    isolation: str | None = None,
    notes: list[str] | None = None,
    **arguments: Scalar,
) -> Iterator[ChildProbe]:
    probe = ChildProbe(
        {"cpu": setting_of(spec, workers=workers, **arguments)},
        Fixed(above_bytes),
        host_budget_bytes=ROOM,
        note=(notes if notes is not None else []).append,
        environ={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        isolation=isolation,
    )
    with closing(probe):
        yield probe


def request(
    batch: int,
    *,
    mode: Mode = "train",
    budget: int = 2 * GIB,
    allowed: int | None = None,
    samples: int = 4,
    train_batch: int | None = None,
    allocator: str = "default",
    deadline_s: float | None = 60.0,
) -> ProbeRequest:
    return ProbeRequest(
        batch=batch,
        mode=mode,
        device="cpu",
        allocator=allocator,
        samples=samples,
        allowed_bytes=allowed or budget + 128 * MIB,
        budget_bytes=budget,
        train_batch=train_batch,
        deadline_s=deadline_s,
    )


def fitting(report: ProbeReport) -> Fits:
    assert isinstance(report.outcome, Fits), report.outcome
    return report.outcome


PLAIN = """
import json, sys
import torch
torch.set_num_threads(1)
from batchcal.workload.load import load_task
from batchcal.workload.reference import TaskReference
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


def test_an_examination_tells_facts_and_curves_of_the_handwriting_example() -> None:
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


def test_a_probe_of_the_handwriting_example_measures_what_a_plain_training_takes() -> None:
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


def test_what_ran_but_held_too_much_is_over_the_budget_and_says_by_how_much() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        fits = fitting(probe.measure(request(128)))
        outcome = probe.measure(request(128, budget=fits.peak.demand_bytes - 40 * MIB, allowed=GIB)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "budget"
    assert "it ran, but held" in outcome.detail
    assert outcome.peak is not None
    assert outcome.peak.demand_bytes == pytest.approx(fits.peak.demand_bytes, rel=0.1)


def test_what_needs_far_more_is_stopped_by_the_fence_and_the_next_probe_is_none_the_worse() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        outcome = probe.measure(request(2000, budget=800 * MIB)).outcome
        after = probe.measure(request(16)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "fence"
    assert isinstance(after, Fits)


def test_an_evaluation_runs_after_a_training_step_and_takes_less() -> None:
    with probing("wide") as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        training = fitting(probe.measure(request(200)))
        alone = fitting(probe.measure(request(200, mode="eval")))
        after = fitting(probe.measure(request(200, mode="eval", train_batch=200)))
    assert alone.peak.demand_bytes < 0.8 * training.peak.demand_bytes
    assert alone.peak.demand_bytes <= after.peak.demand_bytes + 16 * MIB
    assert after.peak.begin_bytes is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_what_they_hold_are_measured_too(workers: int) -> None:
    with probing("wide", workers=workers, repeats=32) as probe:
        report = probe.measure(request(2000, samples=3))
    fits = fitting(report)
    with probing("wide", repeats=32) as probe:
        alone = fitting(probe.measure(request(2000, samples=3)))
    # Each worker is a process that writes to its pages, and keeps batches of 2 MiB ready.
    assert fits.peak.demand_bytes > alone.peak.demand_bytes + workers * 3 * MIB
    assert "rlimit-data" in report.isolation.missing  # it would hold for each process alone


def test_workers_that_die_are_told_as_such() -> None:
    with probing("broken_workers", workers=1) as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        outcome = probe.measure(request(8)).outcome
    assert isinstance(outcome, WorkerDied)


def test_without_an_examination_a_probe_finds_the_largest_samples_itself() -> None:
    with probing("wide", repeats=8, samples=50) as probe:
        assert fitting(probe.measure(request(20))).steps >= 3


def test_a_stream_is_examined_and_run() -> None:
    with probing("stream") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        fits = fitting(probe.measure(request(64)))
    assert examination.facts.train_samples is None
    assert examination.facts.worst_case == "first-samples"
    assert fits.steps >= 3


def test_a_model_that_cannot_be_traced_is_profiled_and_that_is_said() -> None:
    with probing("untraceable") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
    assert examination.shape_source == "profiler"
    assert any("cannot be traced" in note for note in examination.notes)
    assert examination.shapes["train"][-1].bytes > examination.shapes["eval"][-1].bytes > 0


def test_where_nothing_is_seen_to_grow_the_batch_s_own_bytes_stand_for_it() -> None:
    with probing("constant") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
    assert examination.shape_source == "batch-bytes"
    assert any("batch's own bytes" in note for note in examination.notes)
    assert examination.shapes["train"][1].bytes > examination.shapes["train"][0].bytes > 0


def test_a_size_that_the_task_refuses_is_its_own_error() -> None:
    with probing("refusing", above=40) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert isinstance(probe.measure(request(40)).outcome, Fits)
        outcome = probe.measure(request(41)).outcome
    assert examination.facts.parameters > 0
    assert isinstance(outcome, UserCodeFailed)
    assert outcome.error == "ValueError: no more than 40 samples"
    assert "tests/measure/tasks.py" in outcome.traceback
    assert outcome.phase == "measure"


def test_a_task_that_takes_two_samples_only_is_examined_and_bounded_there() -> None:
    with probing("refusing", above=2) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        assert isinstance(probe.measure(request(2)).outcome, Fits)
        assert isinstance(probe.measure(request(3)).outcome, UserCodeFailed)
    assert examination.samples_per_s > 0
    assert examination.shapes["train"][1].bytes > examination.shapes["train"][0].bytes


def test_a_task_that_is_killed_from_outside_is_nobody_s_fault() -> None:
    with probing("dying") as probe:
        assert probe.measure(request(16)).outcome == KilledFromOutside(signal=9)


def test_a_step_that_hangs_ends_at_its_deadline_and_says_where() -> None:
    with probing("hanging") as probe:
        outcome = probe.measure(request(128, deadline_s=0.1)).outcome
    assert isinstance(outcome, TimedOut)
    assert outcome.phase == "measure"
    assert outcome.limit_s == 5.0  # nothing could be said of a shorter one
    assert "in hang" in outcome.detail


def test_a_factory_that_fails_is_the_user_s_error_with_his_traceback() -> None:
    with probing("failing") as probe, pytest.raises(UserCodeError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "FileNotFoundError: no data at /nowhere" in raised.value.what + raised.value.known


def test_a_factory_that_asks_for_an_argument_is_a_usage_error() -> None:
    with probing("asking_for_a_flag") as probe, pytest.raises(UsageError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "corpus" in str(raised.value)


def test_a_factory_that_hangs_says_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOAD_LIMIT_S", 0.5)
    with probing("sleeping") as probe, pytest.raises(UserCodeError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "still in load" in raised.value.what
    assert "in sleeping" in raised.value.known


def test_a_task_that_does_not_fit_even_empty_says_what_it_held() -> None:
    with probing("hungry", above_bytes=900 * MIB) as probe, pytest.raises(NothingFits) as raised:
        probe.examine("cpu", "default", 800 * MIB, 20.0)
    assert "held" in raised.value.known
    assert raised.value.try_


def test_an_examination_whose_child_is_killed_is_not_the_user_s_error() -> None:
    with probing("dying_in_load") as probe, pytest.raises(GuardError) as raised:
        probe.examine("cpu", "default", GIB, 20.0)
    assert "killed-from-outside" in raised.value.known


def test_two_allocators_have_a_zygote_each() -> None:
    names = [policy.name for policy in available()]
    other = "tcmalloc" if "tcmalloc" in names else "retain"
    with probing("wide", repeats=64) as probe:
        reports = {name: probe.measure(request(200, allocator=name)) for name in ("default", other)}
        pids = {launcher.overhead_pid for launcher in probe._launchers.values()}
    assert len(pids) == 2
    assert all(isinstance(report.outcome, Fits) for report in reports.values())


def test_without_a_zygote_every_child_is_spawned_and_that_is_on_the_record() -> None:
    with probing("wide", repeats=64, isolation="spawn") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        report = probe.measure(request(100))
    assert examination.shape_source == "fake-tensor"
    assert isinstance(report.outcome, Fits)
    assert report.isolation.launcher == "spawn"


def test_a_zygote_that_cannot_be_had_is_replaced_by_spawning_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unusable:
        def __init__(self, *asked: object) -> None:
            raise GuardError("the process that batchcal forks its probes from is not usable", known="it has 3 threads")

    monkeypatch.setattr(children, "ZygoteLauncher", Unusable)
    notes: list[str] = []
    with probing("wide", repeats=8, notes=notes) as probe:
        report = probe.measure(request(10))
    assert report.isolation.launcher == "spawn"
    assert notes == [
        "the process that batchcal forks its probes from is not usable: it has 3 threads; spawning every child instead"
    ]


def test_a_zygote_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with probing("wide", repeats=8) as probe:
        assert isinstance(probe.measure(request(10)).outcome, Fits)
        pid = probe._launchers["default"].overhead_pid
        assert pid is not None
        os.kill(pid, 9)
        assert isinstance(probe.measure(request(10)).outcome, Fits)
        assert probe._launchers["default"].overhead_pid != pid


def test_a_probe_is_allowed_less_where_the_machine_has_less() -> None:
    """The group would be full before the budget is used up: the fence stands nearer."""
    with probing("wide", above_bytes=700 * MIB) as probe:
        most = probe.most_measurable_bytes("default")
        assert 200 * MIB < most < 1000 * MIB
        outcome = probe.measure(request(2000, budget=3 * GIB)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source in ("fence", "watchdog")


def answering(monkeypatch: pytest.MonkeyPatch, value: JSON) -> None:
    """Every child answers `value`."""

    def run(job: Job, launcher: Launcher, group: MemoryGroup, limits: Limits) -> Ending:
        return Ending(returned=value, has_result=True, exit_status=0, layers=("watchdog",))

    monkeypatch.setattr(children, "run", run)


ANSWER = ProbeAnswer(
    anonymous_bytes=300 * MIB,
    shared_bytes=10 * MIB,
    file_bytes=90 * MIB,
    workers_bytes=0,
    load_peak_bytes=200 * MIB,
    begin_bytes=250 * MIB,
    step_peak_bytes=400 * MIB,
    accelerator_bytes=None,
    accelerator_allocated_bytes=None,
    accelerator_retries=0,
    step_s=(5.0, 1.0, 2.0, 3.0),
)


@contextmanager
def answered(monkeypatch: pytest.MonkeyPatch, device: str, **changes: object) -> Iterator[ProbeReport]:
    answering(monkeypatch, ANSWER.model_copy(update=changes).model_dump(mode="json"))
    setting = setting_of("wide").model_copy(update={"device": device})
    probe = ChildProbe({device: setting}, Fixed(ROOM), host_budget_bytes=GIB, note=print, isolation="spawn")
    with closing(probe):
        yield probe.measure(request(100).model_copy(update={"device": device}))


def test_the_first_step_is_left_out_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cpu") as report:
        fits = fitting(report)
    assert (fits.steps, fits.step_s, fits.samples_per_s) == (4, 2.0, 50.0)
    assert fits.peak.demand_bytes == 400 * MIB
    assert fits.peak.anonymous_bytes == 390 * MIB


def test_a_single_step_is_all_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cpu", step_s=(5.0,)) as report:
        assert fitting(report).step_s == 5.0


def test_what_loading_took_counts_where_it_is_more_than_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cpu", load_peak_bytes=600 * MIB, workers_bytes=50 * MIB) as report:
        assert fitting(report).peak.demand_bytes == 650 * MIB


def test_on_an_accelerator_its_own_memory_is_the_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cuda:0", accelerator_bytes=GIB, accelerator_allocated_bytes=900 * MIB) as report:
        assert fitting(report).peak.demand_bytes == GIB
    assert "accelerator-fraction" in report.isolation.fence


def test_an_accelerator_s_run_must_fit_the_host_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cuda:0", accelerator_bytes=GIB, workers_bytes=700 * MIB) as report:
        outcome = report.outcome
    assert isinstance(outcome, OutOfMemory)
    assert "of the host's 1.00 GiB" in outcome.detail


def test_a_run_that_had_to_flush_the_allocator_s_cache_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cuda:0", accelerator_bytes=GIB, accelerator_retries=2) as report:
        outcome = report.outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "accelerator"
    assert "2 times" in outcome.detail


@pytest.mark.parametrize("value", [{"nothing": "of use"}, "text", None])
def test_an_answer_that_cannot_be_used_is_ours_to_explain(monkeypatch: pytest.MonkeyPatch, value: JSON) -> None:
    answering(monkeypatch, value)
    with probing("wide", isolation="spawn") as probe:
        assert isinstance(probe.measure(request(1)).outcome, Infrastructure)
        with pytest.raises(GuardError, match="no usable answer"):
            probe.examine("cpu", "default", GIB, 1.0)
