"""What a micro-batch is expected to need and to achieve, from what was measured."""

from __future__ import annotations

from itertools import pairwise

from batchcal.calibration.schema import Calibration, Finding, Measurement, Mode
from batchcal.guard.outcome import Fits


def fitting(calibration: Calibration, finding: Finding, mode: Mode = "train") -> tuple[tuple[Measurement, Fits], ...]:
    """The runs that fitted, on this device under this allocator, by rising batch. Trials of a size run too few steps."""
    found = [
        (measurement, measurement.outcome)
        for measurement in calibration.measurements
        if (measurement.device, measurement.allocator, measurement.mode) == (finding.device, finding.allocator, mode)
        and measurement.phase != "refusal"
        and isinstance(measurement.outcome, Fits)
    ]
    return tuple(sorted(found, key=lambda pair: (pair[0].batch, pair[0].sequence)))


def gradient_bytes(calibration: Calibration, finding: Finding, accumulation_steps: int) -> int:
    """Bytes that accumulation adds to a measured peak.

    From the second micro-batch of a group on, the gradients of the first are alive during the forward pass; a step of one
    micro-batch frees them before it. They are as large as the parameters at most. Nothing is added where the capacity was
    measured with gradients held.
    """
    if accumulation_steps == 1 or finding.train.accumulated or calibration.facts is None:
        return 0
    return calibration.facts.parameter_bytes


def peak_bytes(calibration: Calibration, finding: Finding, micro_batch: int) -> int:
    """Demand of a training step at `micro_batch`: what the memory model says, and no less than any run up to this size needed."""
    return max(round(finding.train_memory.predict(micro_batch)), measured_bytes(calibration, finding, micro_batch))


def measured_bytes(calibration: Calibration, finding: Finding, micro_batch: int) -> int:
    """The most that any run up to `micro_batch` needed; 0: none was run."""
    runs = fitting(calibration, finding)
    measured = [fits.peak.held_on(finding.device) for measurement, fits in runs if measurement.batch <= micro_batch]
    if finding.train.batch <= micro_batch:
        measured.append(finding.train.peak_bytes)
    return max(measured, default=0)


def eval_peak_bytes(finding: Finding, eval_batch: int, micro_batch: int, train_peak: int) -> int:
    """Demand of an evaluation at `eval_batch` after training at `micro_batch`, which takes `train_peak`. 0: it was not
    measured.

    It was measured after training at the capacity, whose heap it then has about it; after smaller micro-batches it needs no more
    than that, nor more than its own share beside what they held.
    """
    measured, memory = finding.eval, finding.eval_memory
    if measured is None:
        return 0
    if memory is None or micro_batch >= finding.train.batch:
        return measured.peak_bytes
    beside = memory.predict(eval_batch) - memory.base_bytes
    return min(measured.peak_bytes, train_peak + max(0, round(beside)))


def host_bytes(calibration: Calibration, finding: Finding) -> int:
    """Host memory that the largest fitting run needed: what is left of the host's budget beside it is for workers."""
    runs = fitting(calibration, finding)
    return max((fits.peak.demand_bytes for _, fits in runs), default=finding.train.peak_bytes if finding.device == "cpu" else 0)


def samples_per_s(calibration: Calibration, finding: Finding, micro_batches: tuple[int, ...]) -> float | None:
    """Samples per second of one process over a group, from the measured step times, between two of them along a line.

    None where a size lies outside of what was timed: a rate is not extrapolated.
    """
    speeds = calibration.speeds_of(finding)
    # A probe's step is an update, too; in a group there is one for all micro-batches.
    update_s = 0.0 if speeds is None else min(time.update_s for time in speeds.times)
    times = {measurement.batch: fits.step_s - update_s for measurement, fits in fitting(calibration, finding)}
    times.setdefault(finding.train.batch, finding.train.batch / finding.train.samples_per_s - update_s)
    # Of real batches, where probes take the largest samples.
    times |= {} if speeds is None else {time.micro_batch: time.step_s for time in speeds.times}
    spent = [_step_s(times, size) for size in micro_batches]
    known = [seconds for seconds in spent if seconds is not None]
    return sum(micro_batches) / (sum(known) + update_s) if len(known) == len(spent) else None


def _step_s(times: dict[int, float], batch: int) -> float | None:
    if batch in times:
        return times[batch]
    for left, right in pairwise(sorted(times)):
        if left < batch < right:
            return times[left] + (times[right] - times[left]) * (batch - left) / (right - left)
    return None
