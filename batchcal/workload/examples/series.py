"""Many-channel time series, from a CSV file or generated, and their windows."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from batchcal.core.errors import UsageError

GENERATED_CHANNELS: Final = 7
"""Number of channels of the ETT series, on which PatchTST was published."""
_PERIODS: Final = (24, 168, 12)
"""Hours: a day, a week, half a day."""


def read_csv(path: Path) -> Tensor:
    """The columns of numbers of a CSV file with a header, (steps, channels), float32; other columns, such as dates, are left out.

    Raises:
        UsageError: it cannot be read, holds no numbers, or a column of numbers holds something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{path} cannot be read: {why}", try_="data = 'series.csv', with a header and one row per step"
        ) from None
    columns = [at for at, text in enumerate(rows[1])] if len(rows) > 1 else []
    columns = [at for at in columns if _number(rows[1][at]) is not None]
    if not columns:
        raise UsageError(
            f"{path} contains no numbers", known="the file needs a header and one row per step", try_="data = 'series.csv'"
        )
    steps: list[list[float]] = []
    for line, row in enumerate(rows[1:], 2):
        values = [_number(row[at]) if at < len(row) else None for at in columns]
        if any(value is None for value in values):
            raise UsageError(
                f"{path}, row {line}: a number is missing in {','.join(row)[:80]!r}",
                known=f"columns of numbers: {', '.join(rows[0][at] if at < len(rows[0]) else str(at + 1) for at in columns)}",
                try_="fill in the missing numbers",
            )
        steps.append([value for value in values if value is not None])
    return torch.tensor(steps)


def generated(steps: int, seed: int) -> Tensor:
    """(steps, 7): each channel is its own mix of daily, weekly and half-daily waves, a trend and noise. The same for a `seed`."""
    generator = torch.Generator().manual_seed(seed)
    hours = torch.arange(steps)
    series = 0.3 * torch.randn(GENERATED_CHANNELS, generator=generator) * hours.unsqueeze(1) / max(steps, 1)
    for period in _PERIODS:
        strength = 0.3 + torch.rand(GENERATED_CHANNELS, generator=generator)
        phases = (2 * math.pi * torch.rand(GENERATED_CHANNELS, generator=generator)).tolist()
        # Not with torch.sin: in one process of ten, its last bit differs (2.13 with MKL).
        wave = torch.tensor([[math.sin(2 * math.pi * hour / period + phase) for phase in phases] for hour in range(period)])
        series = series + strength * wave[hours % period]
    return series + 0.1 * torch.randn(steps, GENERATED_CHANNELS, generator=generator)


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Past (lookback, channels) and future (horizon, channels), at every step of a part of the series.

    Stores the source of the series, not the series: each worker reads or generates it itself.
    """

    def __init__(self, csv_path: Path | None, generated_steps: int, *, lookback: int, horizon: int, part: str, seed: int) -> None:
        self._path, self._steps, self._seed = csv_path, generated_steps, seed
        self._lookback, self._horizon, self._part = lookback, horizon, part
        self._values: Tensor | None = None
        self.channels = self._series().shape[1]
        self._windows = len(self._series()) - lookback - horizon + 1
        if self._windows < 1:
            raise UsageError(
                f"the {part} part of the series has {len(self._series())} steps",
                known=f"a window has {lookback + horizon} steps (lookback + horizon); the last fifth of the series is for eval",
                try_="a shorter lookback or horizon, or a longer series",
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_values": None}

    def __len__(self) -> int:
        return self._windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._windows:
            raise IndexError(index)
        middle = index + self._lookback
        return self._series()[index:middle], self._series()[middle : middle + self._horizon]

    def _series(self) -> Tensor:
        if self._values is None:
            series = generated(self._steps, self._seed) if self._path is None else read_csv(self._path)
            train = series[: len(series) * 4 // 5]
            # Standardised with the mean and deviation of the training part only.
            standard = (series - train.mean(0)) / train.std(0).clamp_min(1e-6)
            self._values = standard[: len(train)] if self._part == "train" else standard[len(train) :]
        return self._values


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
