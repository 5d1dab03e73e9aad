"""Conversion of calibrations from earlier formats."""

from __future__ import annotations

from batchcal.calibration.records.undone import Part
from batchcal.core.canonical import JSON


def upgraded(payload: dict[str, JSON]) -> dict[str, JSON]:
    """`payload` in the current format. Values that an earlier format did not record stay unknown."""
    if payload.get("format") != 1:
        return payload
    undone = payload.get("undone", [])
    if not isinstance(undone, list):
        return payload  # malformed; the reader reports it
    return payload | {"format": 2, "undone": [_undone(text) for text in undone]}


def _undone(text: JSON) -> JSON:
    """Format 1 held only the sentence."""
    return {"part": _part(text), "text": text} if isinstance(text, str) else text


def _part(text: str) -> Part:
    if text.startswith("the rehearsal"):
        return "rehearsal"
    if text.startswith("the race of threads and workers"):
        return "threads-and-workers"
    if ", train: " in text or ", eval: " in text:
        return "search"
    return "policy" if " under " in text else "stopped"
