"""`calibrate --pipeline-only`: measure the input pipeline alone, show the result, and save it in the existing calibration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.keys import find_or_make_trust, find_trust
from batchcal.calibration.locate import existing_of
from batchcal.calibration.store import Loaded, load, load_fresh, save
from batchcal.cli.invocation import Invocation
from batchcal.cli.output.messages import Messages
from batchcal.core.clock import SystemClock
from batchcal.core.progress import key_values
from batchcal.detect.detect import detect
from batchcal.values.settings import CalibrateSettings
from batchcal.workload.spec.identity import identify

if TYPE_CHECKING:
    from batchcal.calibration.records.pipeline import LoaderTiming, PipelineResult
    from batchcal.core.progress import Fields
    from batchcal.detect.environment import Environment


def measure_pipeline(invocation: Invocation, messages: Messages) -> PipelineResult:
    """Measure the input pipeline. Prints one line per candidate and one for the winner.

    Raises:
        UserCodeError, GuardError: see `calibrate_pipeline`.
    """
    from batchcal.measure.pipeline.pipeline import PipelineRequest, calibrate_pipeline

    reference, settings, environment = invocation.task(), invocation.settings, detect()
    request = PipelineRequest(
        batch=settings.calibrate.max_batch,
        fetches=settings.calibrate.samples,
        workers=settings.calibrate.workers,
        time_limit_s=settings.calibrate.time_limit if settings.is_set(CalibrateSettings.time_limit) else None,
        memory_limit_bytes=settings.calibrate.memory_limit,
        seed=settings.calibrate.seed,
    )
    result = calibrate_pipeline(reference, request, environment=environment)
    for timing in result.timings:
        messages.print(f"INFO {key_values('loader_timed', {**config_of(timing), **timing_of(timing)})}")
    winner = {**config_of(result.winner), "settled": result.settled, "wall_s": round(result.wall_s, 3)}
    messages.print(f"INFO {key_values('dataloader_config', winner)}")
    return result


def save_result(invocation: Invocation, result: PipelineResult, output: Path | None, messages: Messages) -> None:
    """Save `result` in the calibration of the task, if there is one that is valid here and now.

    Raises:
        NotSaved: the calibration could not be written.
    """
    reference = invocation.task()
    environment: Environment = detect()
    path = output or existing_of(reference, os.environ)
    stored = load(path, trust=find_trust(os.environ))
    if isinstance(stored, Loaded):
        # Valid for the options that the calibration was measured with. The options of this command do not matter.
        identity, options = identify(reference), stored.calibration.options
        fingerprint = fingerprint_of(environment, identity, options, environ=os.environ)
        stored = load_fresh(path, fingerprint, at=SystemClock().now(), trust=find_trust(os.environ))
    if not isinstance(stored, Loaded):
        messages.print(" note: the result is not saved, because this task has no valid calibration; run batchcal calibrate first")
        return
    key = find_or_make_trust(os.environ, require_signature=False).key
    save(stored.calibration.model_copy(update={"pipeline": result}), stored.path, key=key)
    messages.print(f"saved in {stored.path}; batchcal plan uses it")


def config_of(timing: LoaderTiming) -> dict[str, int | bool | None]:
    config = timing.config
    return {
        "num_workers": config.num_workers,
        "persistent_workers": config.persistent_workers,
        "prefetch_factor": config.prefetch_factor,
    }


def timing_of(timing: LoaderTiming) -> Fields:
    return {
        "samples_per_s": None if timing.samples_per_s is None else round(timing.samples_per_s, 1),
        "p95_ms": None if timing.p95_s is None else round(timing.p95_s * 1000, 2),
        "rounds": timing.rounds,
        "left": timing.left or None,
        "why": timing.why or None,
    }
