"""Series come from a CSV file or are generated; their windows do not reach from one part into the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from batchcal.core.errors import UsageError
from batchcal.workload.examples.patchtst import task
from batchcal.workload.examples.series import Windows, generated, read_csv
from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.reference import Scalar, TaskReference

CPU = torch.device("cpu")


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_numeric_csv_columns_are_read_and_dates_are_omitted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", ["date,a,b", "2026-01-01,1,-2.5", "", "2026-01-02,3,4e1"])
    assert read_csv(path).tolist() == [[1.0, -2.5], [3.0, 40.0]]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "contains no numbers"),
        (["a,b"], "contains no numbers"),
        (["a", "x", "1"], "contains no numbers"),
        (["date,a", "d,1", "d,"], "row 3: a number is missing in 'd,'"),
        (["date,a", "d,1", "d"], "row 3: a number is missing in 'd'"),
        (["a", "1", "nan"], "row 3: a number is missing in 'nan'"),
    ],
)
def test_a_csv_file_with_missing_numbers_is_rejected(tmp_path: Path, rows: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read_csv(write(tmp_path / "s.csv", rows))


def test_an_unreadable_csv_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "gone.csv", tmp_path, tmp_path / "binary.csv"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_csv(path)


def test_a_generated_series_is_determined_by_its_seed_and_periodic() -> None:
    series = generated(24 * 100, 1)
    assert torch.equal(series, generated(24 * 100, 1))
    assert not torch.equal(series, generated(24 * 100, 2))
    assert series.shape == (2400, 7)
    week = 168
    closeness = torch.corrcoef(torch.stack([series[:-week, 0], series[week:, 0]]))[0, 1]
    assert closeness > 0.9


def test_windows_are_one_step_apart_and_stay_within_their_split(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", ["a", *map(str, range(100))])
    train, evaluated = (Windows(path, 0, lookback=5, horizon=2, part=part, seed=0) for part in ("train", "eval"))
    assert (len(train), len(evaluated)) == (74, 14)
    mean, deviation = 39.5, float(torch.arange(80.0).std())
    last_past, last_future = train[73]
    torch.testing.assert_close(last_past.flatten() * deviation + mean, torch.arange(73.0, 78.0))
    torch.testing.assert_close(last_future.flatten() * deviation + mean, torch.tensor([78.0, 79.0]))
    torch.testing.assert_close(evaluated[0][0][0] * deviation + mean, torch.tensor([80.0]))


def test_a_model_forecasts_a_csv_series(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", ["a,b", *(f"{step % 24},{step % 12}" for step in range(600))])
    made = task(CPU, data=str(path), lookback=48, horizon=12, d_model=8, n_layers=1, n_heads=2)
    past, future = (part.unsqueeze(0) for part in made.train_data[0]) if isinstance(made.train_data[0], tuple) else (None, None)
    assert past is not None
    assert future is not None
    assert made.model(past).shape == future.shape == (1, 12, 2)


@pytest.mark.parametrize(
    ("lookback", "patch_length", "stride"), [(168, 16, 8), (100, 16, 7), (16, 16, 1), (17, 5, 20), (20, 1, 1)]
)
def test_any_patch_length_and_stride_that_fit_are_accepted(lookback: int, patch_length: int, stride: int) -> None:
    made = task(
        CPU, steps=900, lookback=lookback, horizon=3, patch_length=patch_length, stride=stride, d_model=8, n_layers=1, n_heads=2
    )
    assert made.model(torch.zeros(2, lookback, 7)).shape == (2, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"patch_length": 200}, "are not possible together"),
        ({"stride": 0}, "are not possible together"),
        ({"horizon": 0}, "are not possible together"),
        ({"d_model": 30}, "is not a multiple of n_heads = 4"),
        ({"n_heads": 0}, "is not a multiple of n_heads = 0"),
        ({"steps": 200}, "the train part of the series has 160 steps"),
        ({"steps": 800}, "the eval part of the series has 160 steps"),
    ],
)
def test_invalid_series_arguments_are_rejected(arguments: dict[str, Scalar], what: str) -> None:
    spec = "batchcal.workload.examples.patchtst:task"
    with pytest.raises(UsageError, match=what):
        load_task(TaskReference(spec=spec, directory="/", arguments=arguments), device="cpu")


def test_a_forecast_follows_the_level_and_scale_of_its_window() -> None:
    made = task(CPU, steps=600, lookback=48, horizon=3, d_model=8, n_layers=1, n_heads=2)
    made.model.eval()
    past = torch.randn(1, 48, 7)
    torch.testing.assert_close(made.model(past * 10 + 100), made.model(past) * 10 + 100, rtol=1e-3, atol=1e-2)
