"""JSON documents for programs: a calibration with its path and freshness, a comparison, a run, a study."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batchcal.cli.views.calibration.comparison import Row
    from batchcal.cli.views.calibration.view import Seen
    from batchcal.hpo.study_status import StudyStatus, TrialStatus
    from batchcal.train.report.run import Run
    from batchcal.train.report.steps import Bucket

# Format history
# 1 - (0.1) first version. The content of `calibration` has its own format number
FORMAT: Final = 1
_POINTS: Final = 200
"""Most points of each curve of a run. Its log has all steps."""


def document(seen: Seen, *, measured: bool) -> str:
    """Return a calibration as a JSON document.

    Args:
        measured: this command measured the calibration; it did not exist before.
    """
    from batchcal.plan.effective_batch import unset_remark

    unset = unset_remark(seen.calibration)
    assumed = seen.calibration.status == "predicted"
    return json.dumps(
        {
            "format": FORMAT,
            "kind": "calibration-view",
            "path": None if seen.path is None else str(seen.path),
            "fresh": seen.stale is None and seen.path is not None,
            "stale": None if seen.stale is None else seen.stale.model_dump(mode="json"),
            "measured": measured and not assumed,
            "assumed": assumed,
            "notices": [*seen.notices, *([unset] if unset else [])],
            "calibration": seen.calibration.model_dump(mode="json"),
        },
        indent=2,
        ensure_ascii=False,
    )


def comparison(rows: tuple[Row, ...], paths: tuple[str, str]) -> str:
    """Return the changes between two calibrations as a JSON document."""
    told = [{**row.model_dump(mode="json"), "ratio": row.ratio, "changed": row.changed} for row in rows]
    return json.dumps(
        {"format": FORMAT, "kind": "comparison", "first": paths[0], "second": paths[1], "rows": told},
        indent=2,
        ensure_ascii=False,
    )


def study(seen: StudyStatus, storage: str) -> str:
    """Return a study with all its trials as a JSON document."""
    best = seen.best()
    told = {
        "format": FORMAT,
        "kind": "study-view",
        "study": seen.name,
        "storage": storage,
        "task": seen.task,
        "metric": seen.metric,
        "direction": seen.direction,
        "wanted": seen.wanted,
        "done": seen.done,
        "resource": seen.resource,
        "counts": seen.counts(),
        "left_s": seen.left_s(),
        "saved_epochs": seen.saved_epochs(),
        "saved_s": seen.saved_s(),
        "prediction_error": seen.prediction_error(),
        "calibrations": seen.calibrations(),
        "best": None if best is None else _trial(best),
        "trials": [_trial(one) for one in seen.trials],
    }
    return json.dumps(told, indent=2, ensure_ascii=False)


def best_trial(seen: StudyStatus, best: TrialStatus) -> str:
    """Return the best trial of a study as a JSON document."""
    told = {"format": FORMAT, "kind": "study-best", "study": seen.name, "metric": seen.metric, **_trial(best)}
    return json.dumps(told, indent=2, ensure_ascii=False)


def _trial(one: TrialStatus) -> dict[str, object]:
    return {
        "number": one.number,
        "state": one.state,
        "value": one.value,
        "parameters": dict(one.parameters),
        "epochs": one.epochs,
        "wall_s": one.wall_s,
        "again": one.again,
        "reached": [list(pair) for pair in one.reached],
        "facts": one.facts.model_dump(mode="json", exclude_none=True),
    }


def run(shown: Run) -> str:
    """Return a run as a JSON document. Its curves are thinned out. NaN and infinite values become null."""
    told = {
        "format": FORMAT,
        "kind": "run-view",
        "path": str(shown.path),
        "status": shown.status,
        "written_at": shown.written_at.isoformat(timespec="seconds"),
        "started": shown.started.model_dump(mode="json"),
        "resumed": [one.model_dump(mode="json") for one in shown.resumes],
        "ended": None if shown.ended is None else shown.ended.model_dump(mode="json"),
        "steps": len(shown.steps),
        "repeated_steps": shown.repeated_steps,
        "wall_s": shown.wall_s,
        "samples_per_s": shown.samples_per_s,
        "peak_bytes": shown.peak_bytes,
        "prediction": None if shown.prediction is None else asdict(shown.prediction),
        "not_finite_steps": list(shown.steps.not_finite("loss")),
        "epochs": [one.model_dump(mode="json") for one in shown.epochs],
        "recoveries": [one.model_dump(mode="json") for one in shown.recoveries],
        "changes": [one.model_dump(mode="json") for one in shown.changes],
        "curves": {name: _curve(shown.steps.buckets(name, _POINTS)) for name in shown.steps.curves()},
        "remarks": list(shown.remarks),
    }
    return json.dumps(_finite(told), indent=2, ensure_ascii=False, allow_nan=False)


def _curve(buckets: tuple[Bucket, ...]) -> dict[str, list[float]]:
    """Return lists of equal length: positions, and the lowest, mean and highest value of the steps at each position."""
    return {name: [getattr(one, name) for one in buckets] for name in ("step", "low", "mean", "high")}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
