"""JSON documents for programs: a calibration with its path and freshness, a comparison, a run, a study."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from batchcal.plan.effective_batch import unset_remark

if TYPE_CHECKING:
    from batchcal.cli.views.calibration.comparison import Row
    from batchcal.cli.views.calibration.view import ShownCalibration
    from batchcal.hpo.study_status import StudyStatus, TrialStatus
    from batchcal.train.report.run import Run
    from batchcal.train.report.steps import Bucket

# Format history
# 1 - (0.1) first version. The content of `calibration` has its own format number
FORMAT: Final = 1
_POINTS: Final = 200
"""Most points of each curve of a run. Its log has all steps."""


def document(view: ShownCalibration, *, measured: bool) -> str:
    """Return a calibration as a JSON document.

    Args:
        measured: this command measured the calibration; it did not exist before.
    """
    unset = unset_remark(view.calibration)
    assumed = view.calibration.status == "predicted"
    return json.dumps(
        {
            "format": FORMAT,
            "kind": "calibration-view",
            "path": None if view.path is None else str(view.path),
            "fresh": view.stale is None and view.path is not None,
            "stale": None if view.stale is None else view.stale.model_dump(mode="json"),
            "measured": measured and not assumed,
            "assumed": assumed,
            "notices": [*view.notices, *([unset] if unset else [])],
            "calibration": view.calibration.model_dump(mode="json"),
        },
        indent=2,
        ensure_ascii=False,
    )


def comparison(rows: tuple[Row, ...], paths: tuple[str, str]) -> str:
    """Return the changes between two calibrations as a JSON document."""
    changes = [{**row.model_dump(mode="json"), "ratio": row.ratio, "changed": row.changed} for row in rows]
    return json.dumps(
        {"format": FORMAT, "kind": "comparison", "first": paths[0], "second": paths[1], "rows": changes},
        indent=2,
        ensure_ascii=False,
    )


def study(status: StudyStatus, storage: str) -> str:
    """Return a study with all its trials as a JSON document."""
    best = status.best()
    content = {
        "format": FORMAT,
        "kind": "study-view",
        "study": status.name,
        "storage": storage,
        "task": status.task,
        "metric": status.metric,
        "direction": status.direction,
        "wanted": status.wanted,
        "done": status.done,
        "resource": status.resource,
        "counts": status.counts(),
        "left_s": status.left_s(),
        "saved_epochs": status.saved_epochs(),
        "saved_s": status.saved_s(),
        "prediction_error": status.prediction_error(),
        "calibrations": status.calibrations(),
        "best": None if best is None else _trial(best),
        "trials": [_trial(trial) for trial in status.trials],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def best_trial(status: StudyStatus, best: TrialStatus) -> str:
    """Return the best trial of a study as a JSON document."""
    content = {"format": FORMAT, "kind": "study-best", "study": status.name, "metric": status.metric, **_trial(best)}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _trial(trial: TrialStatus) -> dict[str, object]:
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "parameters": dict(trial.parameters),
        "epochs": trial.epochs,
        "wall_s": trial.wall_s,
        "again": trial.again,
        "reached": [list(pair) for pair in trial.reached],
        "facts": trial.facts.model_dump(mode="json", exclude_none=True),
    }


def run(shown: Run) -> str:
    """Return a run as a JSON document. Its curves are thinned out. NaN and infinite values become null."""
    content = {
        "format": FORMAT,
        "kind": "run-view",
        "path": str(shown.path),
        "status": shown.status,
        "written_at": shown.written_at.isoformat(timespec="seconds"),
        "started": shown.started.model_dump(mode="json"),
        "resumed": [resume.model_dump(mode="json") for resume in shown.resumes],
        "ended": None if shown.ended is None else shown.ended.model_dump(mode="json"),
        "steps": len(shown.steps),
        "repeated_steps": shown.repeated_steps,
        "wall_s": shown.wall_s,
        "samples_per_s": shown.samples_per_s,
        "peak_bytes": shown.peak_bytes,
        "prediction": None if shown.prediction is None else asdict(shown.prediction),
        "not_finite_steps": list(shown.steps.not_finite("loss")),
        "epochs": [epoch.model_dump(mode="json") for epoch in shown.epochs],
        "recoveries": [recovery.model_dump(mode="json") for recovery in shown.recoveries],
        "changes": [change.model_dump(mode="json") for change in shown.changes],
        "curves": {name: _curve(shown.steps.buckets(name, _POINTS)) for name in shown.steps.curves()},
        "remarks": list(shown.remarks),
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _curve(buckets: tuple[Bucket, ...]) -> dict[str, list[float]]:
    """Return lists of equal length: positions, and the lowest, mean and highest value of the steps at each position."""
    return {name: [getattr(bucket, name) for bucket in buckets] for name in ("step", "low", "mean", "high")}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
