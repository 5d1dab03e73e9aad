"""What holds for a whole calibration on any machine: the answer was run, it is within the budget, the status tells the truth."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.calibration.keys import find_trust
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration, Mode
from batchcal.calibration.store import Loaded, load
from batchcal.core.errors import NothingFits, Partial
from batchcal.core.units import GIB, KIB, MIB
from batchcal.guard.outcome import Fits, Outcome
from batchcal.measure.children.probe import (
    Examination,
    Observation,
    ProbeRequest,
    RehearsalRequest,
    TimingReport,
    TimingRequest,
)
from batchcal.measure.heap.trial import HeapReport, HeapRequest
from batchcal.measure.options import options
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest
from tests.support.probes import BROKEN, KILLED, SUSPECT, Harness, MachineProbe

MISHAPS: tuple[Outcome, ...] = (KILLED, BROKEN, SUSPECT)


class Mishaps(MachineProbe):
    """Now and then a probe is lost, as on a busy machine; never the same twice in a row."""

    chance = random.Random(0)
    often = 0.0
    _before = False

    def measure(self, request: ProbeRequest) -> Observation:
        report = super().measure(request)
        self._before = not self._before and self.chance.random() < self.often
        return report.model_copy(update={"outcome": self.chance.choice(MISHAPS)}) if self._before else report


@st.composite
def machines(draw: st.DrawFn) -> Mishaps:
    base = draw(st.integers(100 * MIB, 900 * MIB))
    per_sample = draw(st.floats(4 * KIB, 200 * MIB))
    ratio = draw(st.floats(0.5, 4.0))
    share = draw(st.floats(0.1, 1.2))
    bend = draw(st.sampled_from([0.0, 0.0, 0.001, 0.05]))
    chance = random.Random(draw(st.integers(0, 10_000)))
    noise = draw(st.sampled_from([0.0, 0.005, 0.05]))

    def paper(batch: int, mode: Mode) -> float:
        return (per_sample * batch * (1 + bend * batch)) * (1.0 if mode == "train" else share)

    probe = Mishaps(
        lambda batch, mode: ratio * paper(batch, mode),
        paper,
        base_bytes=base,
        train_samples=draw(st.one_of(st.none(), st.integers(1, 100_000))),
        eval_samples=draw(st.one_of(st.none(), st.integers(1, 100_000))),
        noise=lambda: 1 + chance.uniform(-noise, noise),
    )
    probe.chance = chance
    probe.often = draw(st.sampled_from([0.0, 0.0, 0.3]))
    return probe


@settings(deadline=None)
@given(
    probe=machines(),
    multiple_of=st.sampled_from([1, 1, 8, 96]),
    max_batch=st.sampled_from([None, None, 100, 4000]),
    max_probes=st.sampled_from([None, None, 1, 3]),
)
def test_the_result_was_measured_within_the_budget_and_the_status_is_correct(
    *, probe: Mishaps, multiple_of: int, max_batch: int | None, max_probes: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder))
        asked = options(GIB, multiple_of=multiple_of, max_batch=max_batch, max_probes=max_probes)
        try:
            result = harness.calibrate(probe, asked)
        except NothingFits as error:
            assert_nothing_fits(probe, error, multiple_of, max_batch)
            return
        on_disk = load(harness.path, trust=find_trust({}))
    assert isinstance(on_disk, Loaded)
    assert on_disk.calibration == result.calibration
    assert_true(result.calibration)
    if isinstance(result.stopped, NothingFits):  # sizes fitted, but the rehearsals of complete plans did not, down to one sample
        assert result.calibration.status == "partial"
        assert result.calibration.rehearsals
        assert not any(rehearsal.fits for rehearsal in result.calibration.rehearsals)
        return
    assert isinstance(result.stopped, Partial) == (result.calibration.status == "partial")
    if max_probes is not None:
        assert len(result.calibration.measurements) <= max_probes + 1  # a lost run is repeated
    if result.calibration.status == "partial":
        assert max_probes is not None


def assert_nothing_fits(probe: Mishaps, error: NothingFits, multiple_of: int, max_batch: int | None) -> None:
    """The smallest size was really run, and it is the machine that does not hold it."""
    smallest = min(request.batch for request in probe.requests)
    assert smallest <= multiple_of
    assert all(part for part in (error.what, error.known, error.try_))


def assert_true(calibration: Calibration) -> None:
    numbers = [one.sequence for one in calibration.measurements]
    assert numbers == list(range(1, len(numbers) + 1))
    runs = {one.sequence: one for one in calibration.measurements}
    searched = [one for one in runs.values() if one.phase != "refusal"]
    budget = calibration.budget()
    assert budget is not None
    for finding in calibration.findings:
        for mode, capacity in (("train", finding.train), ("eval", finding.eval)):
            if capacity is None:
                continue
            if capacity.ruled_out is not None:
                assert capacity.batch < capacity.ruled_out
            if capacity.measured_by == 0:
                fitted = {max(one.settings.micro_batches) for one in calibration.rehearsals if one.fits}
                assert capacity.batch in fitted or capacity.undone, "a complete plan ran it, or it says that nothing did"
                continue
            run = runs[capacity.measured_by]
            assert (run.batch, run.mode, run.allocator, run.device) == (
                capacity.batch,
                mode,
                finding.allocator,
                finding.device,
            )
            assert isinstance(run.outcome, Fits)
            assert run.outcome.peak.demand_bytes == capacity.peak_bytes <= budget.budget_bytes
            larger = [one.batch for one in searched if one.mode == mode and isinstance(one.outcome, Fits)]
            if mode == "train" and capacity.ruled_out is None:
                assert capacity.batch == max(larger)
            else:  # evaluation leaves the allocator's spread free, so a larger one may have been run
                assert capacity.batch in larger
    undone = bool(calibration.undone)
    expected = "partial" if calibration.finding() is None else "unsettled" if undone else "complete"
    assert calibration.status == expected
    for measurement in calibration.measurements:
        assert measurement.allowed_bytes is not None
        assert measurement.allowed_bytes >= budget.budget_bytes


class Cut(BaseException):
    """The power is gone."""


class Cutting:
    """The same machine, with so many probes `left` until the power is gone."""

    def __init__(self, probe: MachineProbe) -> None:
        self._probe = probe
        self.left = 0

    def examine(self, device: str, allocator: str, budget_bytes: int, limit_s: float) -> Examination:
        return self._probe.examine(device, allocator, budget_bytes, limit_s)

    def sizes_that_run(self, device: str, allocator: str, sizes: Sequence[int], limit_s: float) -> tuple[int, ...]:
        return self._probe.sizes_that_run(device, allocator, sizes, limit_s)

    def set_size_rule(self, rule: SizeRule) -> None:
        self._probe.set_size_rule(rule)

    def observe(self, request: ProbeRequest | RehearsalRequest) -> Observation:
        if isinstance(request, ProbeRequest):
            if self.left == 0:
                raise Cut
            self.left -= 1
        return self._probe.observe(request)

    def expect(self, allocators: Sequence[str], demand_bytes: int) -> None:
        return None

    def prepare(self, allocators: Sequence[str], demand_bytes: int) -> None:
        return None

    def time_sizes(self, request: TimingRequest) -> TimingReport:
        return self._probe.time_sizes(request)

    def try_workers(self, request: WorkersRequest) -> WorkersReport:
        return self._probe.try_workers(request)

    def train_varied(self, request: HeapRequest) -> HeapReport:
        return self._probe.train_varied(request)

    def close(self) -> None:
        return None


@settings(deadline=None)
@given(probe=machines(), kills=st.lists(st.integers(0, 4), max_size=4))
def test_a_repeatedly_interrupted_calibration_keeps_its_largest_size(*, probe: Mishaps, kills: list[int]) -> None:
    cutting = Cutting(probe)
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder))
        accepted = 0
        for kill in [*kills, 100]:
            cutting.left = kill
            try:
                calibration = harness.calibrate(cutting).calibration
            except Cut:
                accepted = _accepted(harness)
            except NothingFits:
                assert accepted == 0
                return
            else:
                assert_true(calibration)
                finding = calibration.finding()
                if finding is None:  # two runs were inconclusive, as one that hangs is
                    assert accepted == 0
                    assert calibration.undone
                    return
                ruled_out = finding.train.ruled_out
                # A rehearsal that ran out of memory takes a size away that a probe had verified.
                assert finding.train.batch >= accepted or (ruled_out is not None and ruled_out <= accepted)
                return


def _accepted(harness: Harness) -> int:
    """The largest training batch that was told to have fitted, over all lives."""
    fitted = [fields for fields in harness.events("probe_ended") if (fields["mode"], fields["outcome"]) == ("train", "fits")]
    return max((batch for fields in fitted if isinstance(batch := fields["batch"], int)), default=0)
