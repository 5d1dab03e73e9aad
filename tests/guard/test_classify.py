"""Evidence to outcome: the first match wins, and only memory is called memory."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.report import describe
from batchcal.guard.classify import classify
from batchcal.guard.ending import LOST, Ending
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, Peak

BASE = Ending(exit_status=0, phase="measure", phase_limit_s=9.0, output="the end", peak_anonymous_bytes=700)
ANSWERED = replace(BASE, has_result=True, returned={})


def fits(value: JSON) -> Outcome:
    return Fits(peak=Peak(demand_bytes=1), steps=3, step_s=1.0, samples_per_s=1.0)


def kind(ending: Ending) -> str:
    outcome = classify(ending, fits)
    source = getattr(outcome, "source", "")
    return f"{outcome.kind}:{source}" if source else outcome.kind


def raising(error: BaseException, **changes: object) -> Ending:
    ending = replace(BASE, raised=describe(error, "measure"))
    for name, value in changes.items():
        object.__setattr__(ending, name, value)
    return ending


def test_a_result_is_valid_even_after_an_abnormal_exit() -> None:
    assert kind(replace(ANSWERED, exit_status=-signal.SIGSEGV, oom_kills=1)) == "fits"


def test_a_result_that_swapped_does_not_fit() -> None:
    assert kind(replace(ANSWERED, swapped_bytes=64 << 20)) == "swapping"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (replace(BASE, killed_for="memory"), "out-of-memory:watchdog"),
        (replace(BASE, killed_for="deadline"), "timed-out"),
        (replace(BASE, killed_for="stop"), "infrastructure"),
        (replace(BASE, exit_status=-9, oom_kills=1), "out-of-memory:kernel"),
        (replace(BASE, exit_status=-9), "killed-from-outside"),
        (replace(BASE, exit_status=-signal.SIGTERM), "killed-from-outside"),
        (replace(BASE, exit_status=-11, near_limit=0.9), "suspect"),
        (replace(BASE, exit_status=-11, armed=True), "suspect"),
        (replace(BASE, exit_status=-11, near_limit=0.2), "user-code-failed"),
        (replace(BASE, exit_status=-7, near_limit=0.95), "suspect"),
        (replace(BASE, exit_status=1, output="libgomp: Thread creation failed: Resource temporarily unavailable"), "suspect"),
        (replace(BASE, exit_status=0), "user-code-failed"),
        (replace(BASE, exit_status=LOST), "infrastructure"),
        (replace(BASE, exit_status=LOST, near_limit=0.9), "suspect"),
        (replace(BASE, exit_status=LOST, armed=True, output="MemoryError"), "suspect"),
        (replace(BASE, exit_status=None), "infrastructure"),
        (replace(BASE, exit_status=None, infrastructure="the zygote has died"), "infrastructure"),
        (raising(MemoryError(), armed=True), "out-of-memory:fence"),
        (raising(MemoryError()), "out-of-memory:allocator"),
        (raising(RuntimeError("could not create a primitive"), near_limit=0.9), "suspect"),
        (raising(RuntimeError("could not create a primitive"), near_limit=0.1), "user-code-failed"),
        (raising(RuntimeError("DataLoader worker (pid 3) exited unexpectedly")), "worker-died"),
        (raising(RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")), "out-of-memory:shm"),
        (raising(RuntimeError("CUDA out of memory. Tried to allocate")), "out-of-memory:accelerator"),
        (raising(ValueError("shapes")), "user-code-failed"),
        (raising(MemoryError(), swapped_bytes=64 << 20), "swapping"),
    ],
)
def test_each_kind_of_ending_has_one_outcome(ending: Ending, expected: str) -> None:
    assert kind(ending) == expected


def test_a_user_error_keeps_the_error_message_and_the_output() -> None:
    outcome = classify(raising(ValueError("shapes")), fits)
    assert outcome.kind == "user-code-failed"
    assert outcome.error == "ValueError: shapes"
    assert outcome.output == "the end"


def test_an_out_of_memory_outcome_reports_the_observed_peak() -> None:
    outcome = classify(replace(BASE, killed_for="memory"), fits)
    assert outcome.kind == "out-of-memory"
    assert outcome.peak is not None
    assert outcome.peak.demand_bytes == 700


def test_the_outcome_is_the_value_returned_by_the_reader() -> None:
    assert classify(ANSWERED, lambda value: Infrastructure(detail="not usable")).kind == "infrastructure"
