"""`calibrate --pipeline-only` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchcal.calibration.records.pipeline import LoaderConfig, LoaderTiming, PipelineResult
from batchcal.core.clock import SystemClock
from tests.cli.conftest import Calibrated
from tests.cli.test_process import batchcal

pytestmark = pytest.mark.child


def test_pipeline_only_logs_a_line_per_candidate_and_a_line_for_the_winner(project: Path) -> None:
    done = batchcal("calibrate", "--pipeline-only", "--json")
    assert done.returncode == 0, done.stderr
    result = PipelineResult.model_validate_json(done.stdout)
    candidates = [line for line in done.stderr.splitlines() if line.startswith("INFO loader_timed ")]
    winners = [line for line in done.stderr.splitlines() if line.startswith("INFO dataloader_config ")]
    assert len(candidates) == len(result.timings)
    assert candidates[0].startswith(f"INFO loader_timed num_workers={result.winner.config.num_workers} ")
    assert len(winners) == 1
    assert "the result is not saved, because this task has no valid calibration" in done.stderr
    assert not (project / ".batchcal").exists()


def test_the_plan_uses_the_saved_result_of_pipeline_only(calibrated: Calibrated, project: Path) -> None:
    calibrated()
    kept = project / ".batchcal" / "calibration.json"
    before = json.loads(kept.read_text())
    table = batchcal("calibrate", "--pipeline-only", "--workers", "0")
    assert table.returncode == 0, table.stderr
    assert "0 workers" in table.stdout
    after = json.loads(kept.read_text())
    assert after["pipeline"]["timings"][0]["config"]["num_workers"] == 0
    assert after["measurements"] == before["measurements"]
    assert batchcal("show", "--check").returncode == 0
    plan = json.loads(batchcal("plan", "--json").stdout)
    assert plan["num_workers"] == 0
    assert plan["why"]["num_workers"].startswith("fetching takes ")


def test_a_plan_uses_workers_when_fetching_dominates_a_step(calibrated: Calibrated) -> None:
    def timing(workers: int, rate: float) -> LoaderTiming:
        config = LoaderConfig(num_workers=workers, prefetch_factor=2 if workers else None, persistent_workers=workers > 0)
        return LoaderTiming(config=config, samples_per_s=rate, p95_s=0.1, rounds=3, left="")

    calibrated()
    rate = json.loads(batchcal("plan", "--effective-batch", "64", "--json").stdout)["predicted_samples_per_s"]
    pipeline = PipelineResult(
        created_at=SystemClock().now(),
        batch=128,
        fetches=8,
        timings=(timing(2, 2.3 * rate), timing(1, 1.15 * rate), timing(0, 1.2 * rate)),
        settled=True,
        tie=0.03,
        wall_s=4.0,
    )
    calibrated(pipeline=pipeline)
    plan = json.loads(batchcal("plan", "--effective-batch", "64", "--json").stdout)
    assert (plan["num_workers"], plan["prefetch_factor"], plan["persistent_workers"]) == (2, 2, True)
    assert plan["why"]["num_workers"].startswith("fetching takes 83% of a step: workers gain up to ")


def test_a_failing_dataset_exits_with_code_5(project: Path) -> None:
    (project / "task.py").write_text(
        (project / "task.py").read_text().replace("data[:32]", "[]").replace("train_data=data", "train_data=[1, 'x']")
    )
    done = batchcal("calibrate", "--pipeline-only")
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
