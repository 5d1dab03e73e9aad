"""How a benchmark talks: a readable table while and after it runs, one JSON line at the end, each result on disk as it comes."""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

Row = Mapping[str, object]
MIB: Final = 1024**2


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Columns as wide as they need to be; numbers to the right. A missing value is a dash."""
    if not rows:
        return "(nothing)"
    names = list(columns or rows[0])
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[place]) for line in cells)) for place, name in enumerate(names)]
    numeric = [all(_is_number(row.get(name)) for row in rows) for name in names]
    lines = ["  ".join(name.rjust(w) if n else name.ljust(w) for name, w, n in zip(names, widths, numeric, strict=True))]
    for line in cells:
        lines.append("  ".join(cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(line, widths, numeric, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def finish(name: str, rows: Sequence[Row], summary: Row, *, columns: Sequence[str] | None = None) -> None:
    """The table, the summary, and everything once more as one line of JSON, the last of stdout."""
    print(table(rows, columns))
    for key, value in summary.items():
        print(f"{key}: {_text(value)}")
    print(json.dumps({"benchmark": name, "summary": dict(summary), "rows": [dict(row) for row in rows]}, default=str))


class Journal:
    """JSON lines on disk: what is there already need not be measured again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: list[dict[str, object]] = []
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the line that was being written when the last run was stopped
                if isinstance(row, dict):
                    self.rows.append(row)

    def find(self, **key: object) -> dict[str, object] | None:
        """The row with these values, the newest first."""
        return next((row for row in reversed(self.rows) if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: Row) -> None:
        self.rows.append(dict(row))
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(row), default=str) + "\n")


def rounds(names: Sequence[str], count: int, *, seed: int = 0) -> Iterator[str]:
    """Every name once a round, in an order that changes, so that a slow minute of the machine meets all alike."""
    order = random.Random(seed)
    for _ in range(count):
        yield from order.sample(list(names), len(names))


def paired_ratio(measured: Sequence[float], against: Sequence[float]) -> float:
    """Median of the ratios of what was measured in the same round."""
    return statistics.median(a / b for a, b in zip(measured, against, strict=True))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(_text(one) for one in value)
    return str(value)
