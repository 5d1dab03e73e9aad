"""A calibration for another objective keeps what the earlier one measured."""

from __future__ import annotations

from batchcal.core.errors import Interrupted
from batchcal.core.units import GIB
from batchcal.measure.children.probe import Observation, ProbeRequest
from batchcal.measure.options import options
from tests.measure.capacity.test_largest_useful import Flat
from tests.support.probes import Harness


def test_the_largest_batch_is_added_to_the_results_of_the_races(harness: Harness) -> None:
    by_speed = harness.calibrate(Flat(), options(GIB, allocator="default")).calibration
    both = harness.calibrate(Flat(), options(GIB, allocator="default", objective="memory")).calibration
    assert both.findings[0].train.batch > by_speed.findings[0].train.batch == 256
    assert both.finals == by_speed.finals
    assert both.sizes == by_speed.sizes
    assert by_speed.rehearsals[0] in both.rehearsals
    assert both.unanswered == ()


def test_a_measurement_that_is_stopped_does_not_replace_the_valid_calibration(harness: Harness) -> None:
    class Stopping(Flat):
        def measure(self, request: ProbeRequest) -> Observation:
            if self.requests:
                raise Interrupted(2)
            return super().measure(request)

    by_speed = harness.calibrate(Flat(), options(GIB, allocator="default"))
    before = harness.path.read_bytes()
    stopped = harness.calibrate(Stopping(), options(GIB, allocator="default", objective="memory"))
    assert isinstance(stopped.stopped, Interrupted)
    assert harness.path.read_bytes() == before
    assert by_speed.calibration.finding() is not None
