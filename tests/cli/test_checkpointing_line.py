"""What activation checkpointing saved and cost, in one line."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.rehearsal import Attribution, TurnedBack
from batchcal.cli.views.calibration.speeds import checkpointing_line
from batchcal.core.units import MIB
from batchcal.plan.make import make_plan
from tests.support.calibrations import a_calibration


def told(**back: object) -> Attribution:
    values: dict[str, object] = {
        "knob": "activation_checkpointing",
        "chosen": "auto",
        "usual": "off",
        "samples_per_s": 600.0,
        "peak_bytes": 500 * MIB,
    }
    return Attribution(
        effective_batch=64,
        samples_per_s=500.0,
        peak_bytes=300 * MIB,
        usual_samples_per_s=600.0,
        knobs=(TurnedBack.model_validate(values | back),),
        rounds=2,
    )


@pytest.mark.parametrize(
    ("back", "line"),
    [
        ({}, "activation checkpointing: 300 MiB at the peak, 500 MiB without: 40% less for 20% more time"),
        (
            {"peak_bytes": 240 * MIB, "samples_per_s": 450.0},
            "activation checkpointing: 300 MiB at the peak, 240 MiB without: 25% more for 10% less time",
        ),
        (
            {"peak_bytes": None, "samples_per_s": None, "why": "out of memory"},
            "activation checkpointing: without it, out of memory",
        ),
    ],
    ids=["saves", "of-no-use", "does-not-fit"],
)
def test_the_line_shows_the_measured_effect_of_activation_checkpointing(back: dict[str, object], line: str) -> None:
    assert checkpointing_line(told(**back)) == line


def test_the_line_is_empty_without_activation_checkpointing() -> None:
    assert checkpointing_line(told(knob="allocator", chosen="retain", usual="default")) == ""


def test_a_plan_shows_how_to_enable_checkpointing_in_a_custom_loop() -> None:
    calibration = a_calibration()
    assert not any("checkpointing" in notice for notice in make_plan(calibration).notices)
    options = calibration.options.model_copy(update={"activation_checkpointing": "encoder.layers"})
    notices = make_plan(calibration.model_copy(update={"options": options})).notices
    assert any("GradientCheckpointManager(model, 'encoder.layers').enable()" in notice for notice in notices)
