"""What is made of a child's answer, as it is told or as it should not be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from batchcal.core.errors import GuardError
from batchcal.core.units import GIB, MIB
from batchcal.guard.channel.wire import JSON
from batchcal.guard.ending import Ending
from batchcal.guard.launch import FunctionJob, Launcher
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.outcome import Infrastructure, OutOfMemory
from batchcal.guard.run import ChildLimits, Listener
from batchcal.measure.children import runner
from batchcal.measure.children.child_memory import ChildMemory
from batchcal.measure.children.child_probe import ChildProbe
from batchcal.measure.children.probe import Observation
from batchcal.measure.children.probe_job import ProbeAnswer
from tests.support.children import ROOM, Fixed, fitting, probing, request, setting_of

pytestmark = pytest.mark.child


def answering(monkeypatch: pytest.MonkeyPatch, value: JSON) -> None:
    """Every child answers `value`."""

    def run(job: FunctionJob, launcher: Launcher, group: GroupMeter, limits: ChildLimits, listen: Listener | None) -> Ending:
        return Ending(returned=value, has_result=True, exit_status=0, layers=("watchdog",))

    monkeypatch.setattr(runner, "run", run)


HELD = ChildMemory(
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
)
ANSWER = ProbeAnswer(held=HELD, step_s=(5.0, 1.0, 2.0, 3.0))


@contextmanager
def answered(monkeypatch: pytest.MonkeyPatch, device: str, **changes: object) -> Iterator[Observation]:
    own = {name: value for name, value in changes.items() if name in ProbeAnswer.model_fields}
    held = HELD.model_copy(update={name: value for name, value in changes.items() if name not in own})
    answering(monkeypatch, ANSWER.model_copy(update={"held": held, **own}).model_dump(mode="json"))
    setting = setting_of("wide").model_copy(update={"device": device})
    probe = ChildProbe({device: setting}, Fixed(ROOM), host_budget_bytes=GIB, note=print, isolation="spawn")
    with closing(probe):
        requested = request(100)
        yield probe.measure(requested.model_copy(update={"setup": requested.setup.model_copy(update={"device": device})}))


def test_the_first_step_is_excluded_from_the_step_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cpu") as report:
        fits = fitting(report)
    assert (fits.steps, fits.step_s, fits.samples_per_s) == (4, 2.0, 50.0)
    assert fits.peak.demand_bytes == 400 * MIB
    assert fits.peak.anonymous_bytes == 390 * MIB


def test_a_single_step_gives_the_step_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cpu", step_s=(5.0,)) as report:
        assert fitting(report).step_s == 5.0


def test_the_peak_during_loading_counts_if_it_exceeds_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cpu", load_peak_bytes=600 * MIB, workers_bytes=50 * MIB) as report:
        assert fitting(report).peak.demand_bytes == 650 * MIB


def test_the_peak_on_an_accelerator_is_accelerator_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cuda:0", accelerator_bytes=GIB, accelerator_allocated_bytes=900 * MIB) as report:
        peak = fitting(report).peak
    assert peak.bytes_on("cuda:0") == GIB
    assert peak.demand_bytes == peak.bytes_on("cpu") < GIB
    assert "accelerator-fraction" in report.isolation.fence


def test_a_run_on_an_accelerator_must_also_fit_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cuda:0", accelerator_bytes=GIB, workers_bytes=700 * MIB) as report:
        outcome = report.outcome
    assert isinstance(outcome, OutOfMemory)
    assert "the host budget of 1.00 GiB" in outcome.detail


def test_a_run_with_allocator_retries_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, "cuda:0", accelerator_bytes=GIB, accelerator_retries=2) as report:
        outcome = report.outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "accelerator"
    assert "2 times" in outcome.detail


@pytest.mark.parametrize("value", [{"nothing": "of use"}, "text", None])
def test_an_unusable_answer_of_a_child_is_an_infrastructure_outcome(monkeypatch: pytest.MonkeyPatch, value: JSON) -> None:
    answering(monkeypatch, value)
    with probing("wide", isolation="spawn") as probe:
        assert isinstance(probe.measure(request(1)).outcome, Infrastructure)
        with pytest.raises(GuardError, match="no usable answer"):
            probe.examine("cpu", "default", GIB, 1.0)
