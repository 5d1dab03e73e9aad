from __future__ import annotations

import pytest

from batchcal.core import settings as knobs
from batchcal.core.errors import UsageError
from batchcal.core.settings import KNOBS, Knob, Settings, Source, unknown_variables
from batchcal.core.units import GIB

CONFIG = Source("configs/x.toml", {"calibrate": {"margin": "20%", "time_limit": 30}, "plan": {"effective_batch": 256}})
PROJECT = Source(
    "pyproject.toml", {"calibrate": {"margin": 0.25, "samples": 4}, "train": {"drop_last": True}}, prefix="tool.batchcal."
)


def test_a_flag_beats_the_environment_and_that_beats_the_files() -> None:
    everything = Settings(flags={"margin": "5%"}, environ={"BATCHCAL_MARGIN": "10%"}, files=(CONFIG, PROJECT))
    assert everything.of(knobs.MARGIN) == knobs.Setting(0.05, "flag --margin")
    without_flag = Settings(flags={"margin": None}, environ={"BATCHCAL_MARGIN": "10%"}, files=(CONFIG, PROJECT))
    assert without_flag.of(knobs.MARGIN) == knobs.Setting(0.10, "env BATCHCAL_MARGIN")
    assert Settings(environ={}, files=(CONFIG, PROJECT)).of(knobs.MARGIN) == knobs.Setting(
        0.20, "configs/x.toml [calibrate] margin"
    )
    assert Settings(environ={}, files=(PROJECT,)).of(knobs.MARGIN) == knobs.Setting(
        0.25, "pyproject.toml [tool.batchcal.calibrate] margin"
    )
    assert Settings(environ={}).of(knobs.MARGIN) == knobs.Setting(None, "default")


def test_files_are_merged_key_by_key() -> None:
    both = Settings(environ={}, files=(CONFIG, PROJECT))
    assert both.value(knobs.SAMPLES) == 4
    assert both.value(knobs.TIME_LIMIT) == 30.0
    assert both.value(knobs.EFFECTIVE_BATCH) == 256
    assert both.value(knobs.DROP_LAST) is True


def test_a_flag_of_another_name_is_named_as_it_was_typed() -> None:
    settings = Settings(flags={"samples": "x"}, spelled={"samples": "--calibration-samples"}, environ={})
    with pytest.raises(UsageError, match=r"^calibration-samples 'x' is not a whole number"):
        settings.of(knobs.SAMPLES)


def test_an_empty_variable_is_not_set() -> None:
    assert Settings(environ={"BATCHCAL_SAMPLES": ""}).of(knobs.SAMPLES).origin == "default"


def test_what_was_given_is_listed_with_its_origin() -> None:
    settings = Settings(flags={"max_batch": "64"}, environ={"BATCHCAL_SEED": "7"}, files=(CONFIG,))
    assert settings.given() == [
        ("calibrate", "margin", "0.2", "configs/x.toml [calibrate] margin"),
        ("calibrate", "time_limit", "30.0", "configs/x.toml [calibrate] time_limit"),
        ("calibrate", "max_batch", "64", "flag --max-batch"),
        ("calibrate", "seed", "7", "env BATCHCAL_SEED"),
        ("plan", "effective_batch", "256", "configs/x.toml [plan] effective_batch"),
    ]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"flags": {"memory_limit": "2g"}}, "^memory-limit '2g' is ambiguous"),
        ({"environ": {"BATCHCAL_MEMORY_LIMIT": "2g"}}, "^env BATCHCAL_MEMORY_LIMIT: memory-limit '2g' is ambiguous"),
        (
            {"files": (Source("x.toml", {"calibrate": {"memory_limit": "2g"}}),)},
            r"^x.toml \[calibrate\] memory_limit: memory-limit '2g' is ambiguous",
        ),
    ],
)
def test_a_bare_2g_is_refused_with_the_reason_and_the_place(where: dict[str, object], text: str) -> None:
    flags, environ, files = where.get("flags"), where.get("environ", {}), where.get("files", ())
    assert flags is None or isinstance(flags, dict)
    assert isinstance(environ, dict)
    assert isinstance(files, tuple)
    with pytest.raises(UsageError, match=text) as caught:
        Settings(flags=flags, environ=environ, files=files).of(knobs.MEMORY_LIMIT)
    assert "binary for some tools and decimal for others" in caught.value.known
    assert "2GiB" in caught.value.try_


def test_a_size_in_a_file_needs_a_unit_even_as_a_number() -> None:
    with pytest.raises(UsageError) as caught:
        Settings(environ={}, files=(Source("x.toml", {"calibrate": {"memory_limit": 2}}),)).of(knobs.MEMORY_LIMIT)
    assert caught.value.known == "a size needs a unit"
    with_unit = Source("x.toml", {"calibrate": {"memory_limit": "2 GiB"}})
    assert Settings(environ={}, files=(with_unit,)).value(knobs.MEMORY_LIMIT) == 2 * GIB


@pytest.mark.parametrize(
    ("knob", "text", "says"),
    [
        (knobs.MAX_BATCH, "0", "max-batch 0 is below 1"),
        (knobs.MAX_BATCH, "1.5", "max-batch '1.5' is not a whole number"),
        (knobs.MULTIPLE_OF, "-8", "multiple-of -8 is below 1"),
        (knobs.WORKERS, "-1", "workers -1 is negative"),
        (knobs.MARGIN, "15", "margin '15' is not a fraction"),
        (knobs.TIME_LIMIT, "soon", "time-limit 'soon' is not a duration"),
        (knobs.DEVICE, " ", "device is empty"),
        (knobs.CHECKPOINT, "", "checkpoint is empty"),
        (knobs.DROP_LAST, "maybe", "drop-last 'maybe' is neither true nor false"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(knob: Knob[object], text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings(flags={knob.key: text}, environ={}).of(knob)


def test_every_knob_reads_its_own_default_or_leaves_it_open() -> None:
    for knob in KNOBS:
        setting = Settings(environ={}).of(knob)
        assert setting.origin == "default"
        if setting.value is not None:
            told = "true" if setting.value is True else "false" if setting.value is False else str(setting.value)
            assert Settings(flags={knob.key: told}, environ={}).of(knob).value == setting.value


def test_an_unknown_key_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(UsageError) as caught:
        Settings(environ={}, files=(Source("x.toml", {"calibrate": {"margn": "10%"}}),))
    assert caught.value.what == "x.toml: unknown key 'margn' in [calibrate] (did you mean margin?)"
    assert caught.value.try_ == "margin instead of margn"


def test_a_key_in_the_wrong_table_is_sent_to_the_right_one() -> None:
    with pytest.raises(UsageError, match="unknown key 'epochs'") as caught:
        Settings(environ={}, files=(Source("pyproject.toml", {"calibrate": {"epochs": 3}}, prefix="tool.batchcal."),))
    assert caught.value.known.endswith("it belongs to [tool.batchcal.train]")


def test_a_list_is_no_value() -> None:
    with pytest.raises(UsageError, match=r"x.toml \[calibrate\] margin is not a single value"):
        Settings(environ={}, files=(Source("x.toml", {"calibrate": {"margin": [1]}}),)).of(knobs.MARGIN)


def test_a_table_of_a_later_verb_is_left_alone() -> None:
    assert Settings(environ={}, files=(Source("x.toml", {"hpo": {"trials": 3}}),)).given() == []


def test_a_misspelt_variable_is_told_and_ours_are_not() -> None:
    ours = {
        "BATCHCAL_CALIBRATION": "x",
        "BATCHCAL_KEY_FILE": "k",
        "BATCHCAL_PLAN_MICRO_BATCH": "8",
        "BATCHCAL_REEXEC": "1:default",
    }
    assert unknown_variables({**ours, "BATCHCAL_MARGIN": "1%", "PATH": "/bin"}) == ()
    assert unknown_variables({"BATCHCAL_MEMORY_LIMT": "2GiB"}) == (
        "the variable BATCHCAL_MEMORY_LIMT is not known (did you mean BATCHCAL_MEMORY_LIMIT?); it has no effect",
    )
    assert unknown_variables({"BATCHCAL_QQQQQQQQ": "1"}) == ("the variable BATCHCAL_QQQQQQQQ is not known; it has no effect",)
