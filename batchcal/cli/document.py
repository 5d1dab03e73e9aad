"""A calibration as one JSON document, with where it lies and how fresh it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batchcal.cli.views.calibration import Seen
    from batchcal.cli.views.comparison import Row

# Format history
# 1 - (0.1) first version
FORMAT: Final = 1


def document(seen: Seen, *, measured: bool) -> str:
    """For programs.

    Args:
        measured: this command measured it; it was not there before.
    """
    return json.dumps(
        {
            "format": FORMAT,
            "kind": "calibration-view",
            "path": None if seen.path is None else str(seen.path),
            "fresh": seen.stale is None and seen.path is not None,
            "stale": None if seen.stale is None else seen.stale.model_dump(mode="json"),
            "measured": measured,
            "notices": list(seen.notices),
            "calibration": seen.calibration.model_dump(mode="json"),
        },
        indent=2,
        ensure_ascii=False,
    )


def comparison(rows: tuple[Row, ...], paths: tuple[str, str]) -> str:
    """What changed between two calibrations, for programs."""
    told = [{**row.model_dump(mode="json"), "ratio": row.ratio, "changed": row.changed} for row in rows]
    return json.dumps(
        {"format": FORMAT, "kind": "comparison", "first": paths[0], "second": paths[1], "rows": told},
        indent=2,
        ensure_ascii=False,
    )
