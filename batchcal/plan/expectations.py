"""Expected memory and speed of a micro-batch, from measurements."""

from __future__ import annotations

from itertools import pairwise

from batchcal.calibration.schema import Calibration, Finding, Measurement, Mode
from batchcal.guard.outcome import Fits


def fitting(calibration: Calibration, finding: Finding, mode: Mode = "train") -> tuple[tuple[Measurement, Fits], ...]:
    """Return runs that fitted, on this device under this allocator, by rising batch. Without trials of a size: too few steps."""
    runs = [
        (measurement, measurement.outcome)
        for measurement in calibration.measurements
        if (measurement.device, measurement.allocator, measurement.mode) == (finding.device, finding.allocator, mode)
        and measurement.phase != "refusal"
        and isinstance(measurement.outcome, Fits)
    ]
    return tuple(sorted(runs, key=lambda pair: (pair[0].batch, pair[0].sequence)))


def gradient_bytes(calibration: Calibration, finding: Finding, accumulation_steps: int) -> int:
    """Bytes that accumulation adds to a measured peak.

    From the second micro-batch of a group on, the gradients of the first are alive during the forward pass; a step of one
    micro-batch frees them before it. They are at most as large as the parameters. Nothing is added if the capacity was
    measured with gradients in memory.
    """
    if accumulation_steps == 1 or finding.train.accumulated or calibration.facts is None:
        return 0
    return calibration.facts.parameter_bytes


def peak_bytes(calibration: Calibration, finding: Finding, micro_batch: int) -> int:
    """Memory of a training step at `micro_batch`, bytes: that of the memory model, or of a run up to this size if larger."""
    return max(round(finding.train_memory.predict(micro_batch)), measured_bytes(calibration, finding, micro_batch))


def measured_bytes(calibration: Calibration, finding: Finding, micro_batch: int) -> int:
    """Largest memory that a run up to `micro_batch` needed, bytes. 0: none was run."""
    runs = fitting(calibration, finding)
    measured = [fits.peak.bytes_on(finding.device) for measurement, fits in runs if measurement.batch <= micro_batch]
    if finding.train.batch <= micro_batch:
        measured.append(finding.train.peak_bytes)
    return max(measured, default=0)


def eval_peak_bytes(finding: Finding, eval_batch: int, micro_batch: int, train_peak: int) -> int:
    """Memory of an evaluation at `eval_batch` after training at `micro_batch`, which needs `train_peak`, bytes. 0: not measured.

    It was measured after training at the capacity, with the heap of that training. After smaller micro-batches, it needs at most
    the measured value, and at most its own share beside the memory of the training.
    """
    measured, memory = finding.eval, finding.eval_memory
    if measured is None:
        return 0
    if memory is None or micro_batch >= finding.train.batch:
        return measured.peak_bytes
    batch_bytes = memory.predict(eval_batch) - memory.base_bytes
    return min(measured.peak_bytes, train_peak + max(0, round(batch_bytes)))


def host_bytes(calibration: Calibration, finding: Finding) -> int:
    """Host memory that the largest fitting run needed, bytes. The rest of the host's budget is for workers."""
    runs = fitting(calibration, finding)
    return max((fits.peak.demand_bytes for _, fits in runs), default=finding.train.peak_bytes if finding.device == "cpu" else 0)


def samples_per_s(calibration: Calibration, finding: Finding, micro_batches: tuple[int, ...]) -> float | None:
    """Samples per second of one process over a group, by linear interpolation between measured step times.

    None if a size is outside the timed range: a rate is not extrapolated.
    """
    speeds = calibration.speeds_of(finding)
    # A probe's step includes an update. A group has one update for all micro-batches.
    update_s = 0.0 if speeds is None else min(time.update_s for time in speeds.times)
    times = {measurement.batch: fits.step_s - update_s for measurement, fits in fitting(calibration, finding)}
    times.setdefault(finding.train.batch, finding.train.batch / finding.train.samples_per_s - update_s)
    # These are times of real batches. Probes use the largest samples.
    times |= {} if speeds is None else {time.micro_batch: time.step_s for time in speeds.times}
    spent = [_step_s(times, size) for size in micro_batches]
    timed = [seconds for seconds in spent if seconds is not None]
    return sum(micro_batches) / (sum(timed) + update_s) if len(timed) == len(spent) else None


def _step_s(times: dict[int, float], batch: int) -> float | None:
    if batch in times:
        return times[batch]
    for left, right in pairwise(sorted(times)):
        if left < batch < right:
            return times[left] + (times[right] - times[left]) * (batch - left) / (right - left)
    return None
