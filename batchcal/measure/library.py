"""`batchcal.calibrate`: the calibration for who calls it from Python."""

from __future__ import annotations

import os
from pathlib import Path

from batchcal.calibration.schema import Calibration, Objective
from batchcal.core.progress import Progress
from batchcal.detect.accelerator import present
from batchcal.detect.detect import detect
from batchcal.detect.torch_answer import ask_in_child
from batchcal.guard.allocator import AUTO
from batchcal.guard.roots import HERE
from batchcal.measure.calibrate import calibrate as run
from batchcal.measure.options import TIME_LIMIT_S, options
from batchcal.workload.find import reference_of


def calibrate(
    target: str,
    *,
    margin: float | None = None,
    headroom: float | None = None,
    memory_limit_bytes: int | None = None,
    samples: int | None = None,
    max_batch: int | None = None,
    multiple_of: int = 1,
    device: str = "auto",
    allocator: str = AUTO,
    workers: int | None = None,
    effective_batch: int | None = None,
    seed: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
    max_probes: int | None = None,
    objective: Objective = "throughput",
    output: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measures the task behind `target` here and writes the calibration; a fresh one that is there is returned at once.

    The task runs in child processes only, so this works from any script, guarded by `if __name__ == "__main__"` or not.

    Args:
        target: `package.module:factory`, `path/to/file.py:factory` or a TOML config.
        margin: fraction of the memory limit that is left alone; default 0.15 on the CPU, 0.10 on an accelerator.
        memory_limit_bytes: an allowance below the real limit.
        allocator, workers: what is given is not raced.
        effective_batch, objective: of the plan that is rehearsed; plans for others are derived.
        output: the file to write; default: BATCHCAL_CALIBRATION, else `.batchcal/calibration.json` of the project.

    Raises:
        BatchcalError: one of its kinds, as the command line's exit codes tell them. Partial and NotSaved come after what was
            measured was kept, where it could be.
    """
    environment = detect(ask_child=ask_in_child if present(HERE, os.environ) else None)
    asked = options(
        environment.memory.limit.value,
        margin=margin,
        headroom=headroom,
        memory_limit_bytes=memory_limit_bytes,
        samples=samples,
        max_batch=max_batch,
        multiple_of=multiple_of,
        device=device,
        allocator=allocator,
        workers=workers,
        effective_batch=effective_batch,
        seed=seed,
        time_limit_s=time_limit_s,
        max_probes=max_probes,
        objective=objective,
    )
    reference = reference_of(target, directory=Path.cwd())
    result = run(
        reference, asked, environment=environment, output=output, force=force, progress=progress, environ=dict(os.environ)
    )
    for error in (result.stopped, result.not_saved):
        if error is not None:
            raise error
    return result.calibration
