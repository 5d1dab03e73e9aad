"""The memory and time that the user allows hold in every child from its first step on."""

from __future__ import annotations

import time

import pytest

from batchcal.core.errors import NothingFits, Partial
from batchcal.core.units import GIB, MIB
from batchcal.guard.ending import Ending
from batchcal.guard.launch import FunctionJob, Launcher
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.outcome import Fits, OutOfMemory, TimedOut
from batchcal.guard.run import ChildLimits, Listener, run
from batchcal.measure.children import runner
from batchcal.measure.children.child_probe import ChildProbe
from batchcal.measure.deadline import GRACE_S, OVERRUN, Deadline
from tests.support.children import probing, request

ALLOWED = 800 * MIB
OVERSHOOT = 64 * MIB
"""Of the watchdog, which looks every 5 ms: 14 MiB at most in 18 runs that touched 3 GiB on a busy machine."""


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most anonymous memory of every child."""
    found: list[int] = []

    def watched(
        job: FunctionJob, launcher: Launcher, group: GroupMeter, limits: ChildLimits, listen: Listener | None = None
    ) -> Ending:
        ending = run(job, launcher, group, limits, listen)
        found.append(ending.peak_anonymous_bytes)
        return ending

    monkeypatch.setattr(runner, "run", watched)
    return found


def spent(limit_s: float) -> Deadline:
    """A deadline of `limit_s` that has passed."""
    return Deadline(limit_s, time.monotonic() - limit_s * OVERRUN - GRACE_S - 1)


def test_a_deadline_leaves_a_quarter_more_than_the_limit() -> None:
    began = time.monotonic()
    assert 20 * OVERRUN - 1 < Deadline(20.0, began).left_s() <= 20 * OVERRUN + GRACE_S
    assert spent(20.0).left_s() == 0
    assert Deadline(2.5).name == "the time limit of 2.5 s (--time-limit)"


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_an_examination_stays_within_the_memory_limit(peaks: list[int]) -> None:
    """Before, only the container's own limit held: 7.8 GiB of 1.5."""
    with probing("heavy_samples", mib=1500, host_allowed_bytes=ALLOWED) as probe, pytest.raises(NothingFits) as raised:
        probe.examine("cpu", "default", 700 * MIB, 3.0)
    assert "on its first small batch" in raised.value.what
    assert max(peaks) < ALLOWED + OVERSHOOT


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_a_job_stays_within_the_memory_limit_even_if_it_requests_more(peaks: list[int]) -> None:
    with probing("wide", host_allowed_bytes=ALLOWED) as probe:
        probe.examine("cpu", "default", 700 * MIB, 3.0)
        outcome = probe.measure(request(2000, budget=3 * GIB)).outcome
    assert isinstance(outcome, OutOfMemory)
    assert max(peaks) < ALLOWED + OVERSHOOT


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_a_single_sample_is_tried_when_two_do_not_fit() -> None:
    with probing("heavy_samples", mib=64, host_allowed_bytes=760 * MIB) as probe:
        examination = probe.examine("cpu", "default", 700 * MIB, 3.0)
        assert isinstance(probe.measure(request(1, budget=700 * MIB)).outcome, Fits)
    assert examination.base_bytes < 760 * MIB


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_a_trace_that_runs_out_of_memory_falls_back_to_the_profiler() -> None:
    with probing("crowded_trace", host_allowed_bytes=ALLOWED) as probe:
        examination = probe.examine("cpu", "default", 700 * MIB, 3.0)
        assert isinstance(probe.measure(request(64, budget=700 * MIB)).outcome, Fits)
    assert examination.shape_source == "profiler"
    assert any("ran out of memory" in note for note in examination.notes)


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_a_slow_factory_is_stopped_at_the_time_limit_and_named() -> None:
    began = time.monotonic()
    with probing("sleeping", deadline=Deadline(1.0)) as probe, pytest.raises(Partial) as raised:
        probe.examine("cpu", "default", GIB, 3.0)
    assert time.monotonic() - began < 1.0 * OVERRUN + 3
    assert raised.value.what == "the time limit of 1 s (--time-limit) ended while the task was imported and built"
    assert "in sleeping" in raised.value.known


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_a_loss_that_hangs_at_a_size_ends_with_the_time_limit() -> None:
    began = time.monotonic()
    with probing("hanging", deadline=Deadline(4.0)) as probe:
        outcome = probe.measure(request(128, deadline_s=60.0)).outcome
    assert time.monotonic() - began < 4.0 * OVERRUN + 3
    assert isinstance(outcome, TimedOut)
    assert outcome.limit_name == "the time limit of 4 s (--time-limit)"


@pytest.mark.child
@pytest.mark.usefixtures("zygote")
def test_no_child_is_started_once_the_time_limit_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: ChildProbe, allocator: str) -> None:
        pytest.fail("a launcher was requested")

    monkeypatch.setattr(runner.ChildRunner, "_launcher", never)
    with probing("wide", deadline=spent(4.0)) as probe:
        assert isinstance(probe.measure(request(8)).outcome, TimedOut)
        with pytest.raises(Partial):
            probe.examine("cpu", "default", GIB, 3.0)


@pytest.mark.child
def test_the_start_of_a_launcher_ends_with_the_time_limit() -> None:
    """On a cold disk the import of torch alone may take longer."""
    began = time.monotonic()
    with probing("wide", own_zygote=True, deadline=Deadline(0.01)) as probe, pytest.raises(Partial) as raised:
        probe.examine("cpu", "default", GIB, 3.0)
    assert time.monotonic() - began < 3
    assert raised.value.what.startswith("the time limit of 0.01 s (--time-limit) ended")
