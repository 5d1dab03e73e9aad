"""`batchcal.calibrate`: the calibration for callers from Python."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Unpack

from batchcal.calibration.schema import Calibration
from batchcal.core.progress import Progress
from batchcal.detect.detect import detect, detect_for
from batchcal.measure.obtain import obtain
from batchcal.measure.options import Requested, options
from batchcal.measure.result import Need
from batchcal.values.calibration_events import CalibrationEvent
from batchcal.workload.spec.target import reference_of


def calibrate(
    target: str,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress[CalibrationEvent] | None = None,
    **requested: Unpack[Requested],
) -> Calibration:
    """Measure the task behind `target` on this machine and write the calibration. If a fresh one exists, return it at once.

    The task runs in child processes only, so this works from any script, guarded by `if __name__ == "__main__"` or not.

    Args:
        target: `package.module:factory`, `path/to/file.py:factory` or a TOML config.
        output: the file to write; default: BATCHCAL_CALIBRATION, else the file of the task in `.batchcal` of the project.
        requested: any of the options, by name, with units: `margin=0.1`, `memory_limit_bytes=2 * 2**30`, `time_limit_s=30`,
            `max_batch`, `multiple_of`, `device`, `allocator`, `workers`, `effective_batch`, `objective`, ... (see
            `measure.options.Requested`). A given allocator or number of workers is not raced.

    Raises:
        BatchcalError: a subclass, corresponding to an exit code of the command line. Before Partial and NotSaved are raised, the
            measurements are saved if possible.
    """
    environment = detect()
    complete_options = options(environment.memory.limit.value, **requested)
    reference = reference_of(target, directory=Path.cwd())
    result = obtain(
        reference,
        complete_options,
        Need(force=force),
        environment=environment,
        detect_fully=lambda: detect_for(complete_options.device),
        output=output,
        progress_context=None if progress is None else lambda: nullcontext(progress),
    )
    if result.problem is not None:
        raise result.problem
    return result.calibration
