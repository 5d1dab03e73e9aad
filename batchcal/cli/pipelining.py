"""`calibrate --pipeline-only`: the input pipeline alone, told, drawn and kept with the calibration that is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.cli.desk import Desk, find_fresh
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from batchcal.calibration.pipeline import LoaderTiming, PipelineResult
    from batchcal.core.progress import Fields
    from batchcal.detect.environment import Environment


def pipelined(desk: Desk, voice: Voice) -> PipelineResult:
    """Measures, and tells one line a candidate and one for the winner.

    Raises:
        UserCodeError, GuardError: see `calibrate_pipeline`.
    """
    from batchcal.core import settings as knobs
    from batchcal.core.progress import key_values
    from batchcal.detect.detect import detect
    from batchcal.measure.pipeline.pipeline import PipelineWish, calibrate_pipeline

    reference, settings, environment = desk.task(), desk.settings, detect()
    limit = settings.of(knobs.TIME_LIMIT)
    wish = PipelineWish(
        batch=settings.value(knobs.MAX_BATCH),
        fetches=settings.value(knobs.SAMPLES),
        workers=settings.value(knobs.WORKERS),
        time_limit_s=None if limit.origin == "default" else limit.value,
        seed=settings.value(knobs.SEED),
    )
    result = calibrate_pipeline(reference, wish, environment=environment)
    for timing in result.timings:
        voice.say(f"INFO {key_values('loader_timed', {**config_of(timing), **timing_of(timing)})}")
    winner = {**config_of(result.winner), "settled": result.settled, "wall_s": round(result.wall_s, 3)}
    voice.say(f"INFO {key_values('dataloader_config', winner)}")
    return result


def keep(desk: Desk, result: PipelineResult, output: Path | None, voice: Voice) -> None:
    """Puts `result` into the calibration of the task, where there is one that holds here and now.

    Raises:
        NotSaved: it could not be written.
    """
    import os

    from batchcal.calibration.keys import find_or_make_trust, find_trust
    from batchcal.calibration.store import Loaded, existing_path, load, save
    from batchcal.detect.detect import detect

    reference = desk.task()
    environment: Environment = detect()
    path = output or existing_path(Path(reference.directory), os.environ)
    before = load(path, trust=find_trust(os.environ))
    found = None
    if isinstance(before, Loaded):
        # Whatever was asked of this measurement: the calibration is for what was asked of it.
        found = find_fresh(reference, before.calibration.options, environment, path, require_signature=False)
    if not isinstance(found, Loaded):
        voice.say(" note: not kept, there is no calibration of this task to keep it with; batchcal calibrate makes one")
        return
    key = find_or_make_trust(os.environ, require_signature=False).key
    save(found.calibration.model_copy(update={"pipeline": result}), found.path, key=key)
    voice.say(f"kept in {found.path}: batchcal plan uses it")


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
