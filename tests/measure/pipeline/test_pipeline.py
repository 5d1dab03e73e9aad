"""The DataLoaders that a user's data gets, in real children with real workers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from batchcal.calibration.records.pipeline import PipelineResult
from batchcal.core.errors import Partial, UserCodeError
from batchcal.core.units import MIB
from batchcal.detect.detect import detect
from batchcal.measure.pipeline import pipeline
from batchcal.measure.pipeline.pipeline import PipelineRequest, calibrate_pipeline
from batchcal.workload.spec.reference import Scalar, TaskReference
from tests.support.cgroups import memory_cgroup, needs_memory_cgroup
from tests.support.children import REPOSITORY

pytestmark = pytest.mark.child

QUICK = PipelineRequest(batch=16, fetches=4, time_limit_s=8.0)
"""Of which torch and the trial of workers take three."""
LONG = PipelineRequest(batch=16, fetches=4, time_limit_s=30.0)
"""Ends as soon as the race is decided, also on a machine that is busy."""


def measured(name: str, wish: PipelineRequest = QUICK, **arguments: Scalar) -> PipelineResult:
    reference = TaskReference(spec=f"tests.measure.pipeline.tasks:{name}", directory=str(REPOSITORY), arguments=arguments)
    return calibrate_pipeline(reference, wish, environment=detect())


def test_workers_win_for_slow_data_and_timings_are_sorted_by_speed() -> None:
    result = measured("waiting", LONG)
    rates = [timing.samples_per_s for timing in result.timings if timing.samples_per_s is not None]
    assert result.winner.config.num_workers == max(timing.config.num_workers for timing in result.timings)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    alone = result.of(0)
    assert alone is not None
    assert result.winner.samples_per_s is not None
    assert alone.samples_per_s is not None
    assert result.winner.samples_per_s > 1.5 * alone.samples_per_s
    assert result.winner.p95_s is not None
    assert result.winner.p95_s < 1


@pytest.mark.smoke("job:batchcal.measure.pipeline.job:fetch")
def test_light_data_needs_no_workers() -> None:
    result = measured("rows", LONG)
    assert result.winner.config.num_workers == 0
    assert result.winner.config.persistent_workers is False


def test_a_dataset_smaller_than_a_batch_is_one_batch() -> None:
    assert measured("rows", PipelineRequest(batch=512, fetches=4, time_limit_s=8.0), samples=5).batch == 5


def test_slow_data_is_fetched_in_smaller_batches() -> None:
    result = measured("waiting", PipelineRequest(batch=512, fetches=4, time_limit_s=8.0))
    assert result.batch < 512
    assert result.winner.rounds >= 1


@pytest.mark.parametrize(
    ("name", "why"), [("dying_in_workers", "exited"), ("failing_in_workers", "this handle belongs to another process")]
)
def test_a_loader_with_failing_workers_leaves_the_race_with_the_reason(name: str, why: str) -> None:
    result = measured(name, LONG)
    assert result.winner.config.num_workers == 0
    others = [timing for timing in result.timings if timing.config.num_workers]
    assert others
    for timing in others:
        assert (timing.left, timing.samples_per_s) == ("failed", None)
        assert why in timing.why


def test_a_dataset_that_hangs_is_a_user_code_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LOAD_LIMIT_S", 3.0)
    with pytest.raises(UserCodeError) as error:
        measured("hanging", PipelineRequest(batch=16, fetches=4, time_limit_s=40.0))
    assert "the data hangs" in error.value.what
    assert "__getitem__" in error.value.known


def test_a_stream_is_read_by_at_most_one_worker_and_restarts_at_its_end() -> None:
    result = measured("stream")
    assert {timing.config.num_workers for timing in result.timings} == {0, 1}
    assert result.winner.samples_per_s is not None


@pytest.mark.parametrize(
    ("name", "told"), [("ragged", "stack expects each tensor to be equal size"), ("broken", "the path is wrong")]
)
def test_a_dataset_that_fails_is_a_user_code_error_with_its_message(name: str, told: str) -> None:
    with pytest.raises(UserCodeError) as error:
        measured(name)
    assert told in error.value.what + error.value.known


def test_a_given_number_of_workers_is_not_raced() -> None:
    result = measured("rows", PipelineRequest(batch=16, fetches=4, workers=1, time_limit_s=8.0))
    assert {timing.config.num_workers for timing in result.timings} == {1}


def test_an_example_pipeline_is_measured_without_training_steps() -> None:
    reference = TaskReference(spec="batchcal.workload.examples.handwriting:task", directory=str(Path.cwd()), arguments={})
    result = calibrate_pipeline(reference, QUICK, environment=detect())
    assert result.winner.samples_per_s is not None
    assert result.winner.samples_per_s > 100


def test_requested_workers_that_die_are_a_user_code_error() -> None:
    with pytest.raises(UserCodeError) as error:
        measured("dying_in_workers", PipelineRequest(batch=16, fetches=4, workers=1, time_limit_s=10.0))
    assert error.value.what.startswith("1 worker cannot be used: a worker exits while it reads the dataset")
    assert "exited" in error.value.what


@pytest.mark.cgroup
@needs_memory_cgroup
def test_the_watchdog_stops_workers_before_the_container_is_full() -> None:
    command = [sys.executable, "-m", "batchcal", "calibrate", "tests.measure.pipeline.tasks:heavy", "--pipeline-only", "--json"]
    with memory_cgroup(700 * MIB) as group:
        done = group.run(command, timeout=120)
        assert group.oom_kills() == 0
    assert done.returncode == 0, done.stderr
    result = PipelineResult.model_validate_json(done.stdout)
    assert result.winner.config.num_workers == 0
    assert all("out-of-memory: watchdog" in timing.why for timing in result.timings[1:])


def test_a_dataset_that_hangs_is_stopped_at_the_time_limit() -> None:
    reference = TaskReference(spec="tests.measure.pipeline.tasks:hanging", directory=str(REPOSITORY))
    environment = detect()  # before the clock starts: on a loaded machine it takes seconds
    began = time.monotonic()
    with pytest.raises(Partial) as error:
        calibrate_pipeline(reference, PipelineRequest(batch=16, fetches=4, time_limit_s=4.0), environment=environment)
    assert time.monotonic() - began < 4.0 * 1.25 + 3
    assert error.value.what.startswith("the time limit of 4 s (--time-limit) ended while ")


def test_fetching_stays_within_the_memory_limit() -> None:
    with pytest.raises(UserCodeError) as error:
        measured("heavy", PipelineRequest(batch=512, fetches=4, workers=0, time_limit_s=10.0, memory_limit_bytes=150 * MIB))
    assert "needs more memory than is available" in error.value.what
