from __future__ import annotations

import pytest

from batchcal.core.errors import UsageError
from batchcal.core.option import Option
from batchcal.core.settings import Setting, SettingSource, unknown_variables
from batchcal.core.units import GIB
from batchcal.values.settings import CalibrateSettings, Settings, TrainSettings

CONFIG = SettingSource("configs/x.toml", {"calibrate": {"margin": "20%", "time_limit": 30}, "plan": {"effective_batch": 256}})
PROJECT = SettingSource(
    "pyproject.toml", {"calibrate": {"margin": 0.25, "samples": 4}, "train": {"drop_last": True}}, prefix="tool.batchcal."
)


def test_a_flag_overrides_the_environment_and_both_override_files() -> None:
    everything = Settings(flags={"margin": "5%"}, environ={"BATCHCAL_MARGIN": "10%"}, files=(CONFIG, PROJECT))
    assert everything.of(CalibrateSettings.margin) == Setting(0.05, "flag --margin")
    without_flag = Settings(flags={"margin": None}, environ={"BATCHCAL_MARGIN": "10%"}, files=(CONFIG, PROJECT))
    assert without_flag.of(CalibrateSettings.margin) == Setting(0.10, "env BATCHCAL_MARGIN")
    assert Settings(environ={}, files=(CONFIG, PROJECT)).of(CalibrateSettings.margin) == Setting(
        0.20, "configs/x.toml [calibrate] margin"
    )
    assert Settings(environ={}, files=(PROJECT,)).of(CalibrateSettings.margin) == Setting(
        0.25, "pyproject.toml [tool.batchcal.calibrate] margin"
    )
    assert Settings(environ={}).of(CalibrateSettings.margin) == Setting(None, "default")


def test_files_are_merged_key_by_key() -> None:
    both = Settings(environ={}, files=(CONFIG, PROJECT))
    assert both.calibrate.samples == 4
    assert both.calibrate.time_limit == 30.0
    assert both.plan.effective_batch == 256
    assert both.train.drop_last is True


def test_an_error_names_a_renamed_flag_as_the_user_typed_it() -> None:
    settings = Settings(flags={"samples": "x"}, flag_names={"samples": "--calibration-samples"}, environ={})
    with pytest.raises(UsageError, match=r"^calibration-samples 'x' is not a whole number"):
        settings.of(CalibrateSettings.samples)


def test_an_empty_environment_variable_counts_as_unset() -> None:
    assert Settings(environ={"BATCHCAL_SAMPLES": ""}).of(CalibrateSettings.samples).origin == "default"


def test_non_default_settings_are_listed_with_their_origin() -> None:
    settings = Settings(flags={"max_batch": "64"}, environ={"BATCHCAL_SEED": "7"}, files=(CONFIG,))
    assert settings.non_defaults() == [
        ("calibrate", "margin", "0.2", "configs/x.toml [calibrate] margin"),
        ("calibrate", "max_batch", "64", "flag --max-batch"),
        ("calibrate", "time_limit", "30.0", "configs/x.toml [calibrate] time_limit"),
        ("calibrate", "seed", "7", "env BATCHCAL_SEED"),
        ("plan", "effective_batch", "256", "configs/x.toml [plan] effective_batch"),
    ]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"flags": {"memory_limit": "2g"}}, "^--memory-limit '2g' is ambiguous"),
        ({"environ": {"BATCHCAL_MEMORY_LIMIT": "2g"}}, "^BATCHCAL_MEMORY_LIMIT '2g' is ambiguous"),
        (
            {"files": (SettingSource("x.toml", {"calibrate": {"memory_limit": "2g"}}),)},
            r"^x.toml \[calibrate\] memory_limit '2g' is ambiguous",
        ),
    ],
)
def test_an_ambiguous_size_is_rejected_with_the_reason_and_its_origin(where: dict[str, object], text: str) -> None:
    flags, environ, files = where.get("flags"), where.get("environ", {}), where.get("files", ())
    assert flags is None or isinstance(flags, dict)
    assert isinstance(environ, dict)
    assert isinstance(files, tuple)
    with pytest.raises(UsageError, match=text) as caught:
        Settings(flags=flags, environ=environ, files=files).of(CalibrateSettings.memory_limit)
    assert "binary for some tools and decimal for others" in caught.value.known
    assert "2GiB" in caught.value.try_
    assert ("--" in caught.value.try_) == (flags is not None), "a file has no flags"


def test_a_size_in_a_file_needs_a_unit_even_as_a_number() -> None:
    with pytest.raises(UsageError) as caught:
        Settings(environ={}, files=(SettingSource("x.toml", {"calibrate": {"memory_limit": 2}}),)).of(
            CalibrateSettings.memory_limit
        )
    assert caught.value.known.startswith("a size needs a unit")
    assert caught.value.try_.startswith('memory_limit = "2GiB" in x.toml [calibrate]')
    with_unit = SettingSource("x.toml", {"calibrate": {"memory_limit": "2 GiB"}})
    assert Settings(environ={}, files=(with_unit,)).calibrate.memory_limit == 2 * GIB


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        (CalibrateSettings.max_batch, "0", "max-batch 0 is below 1"),
        (CalibrateSettings.max_batch, "1.5", "max-batch '1.5' is not a whole number"),
        (CalibrateSettings.multiple_of, "-8", "multiple-of -8 is below 1"),
        (CalibrateSettings.workers, "-1", "workers -1 is negative"),
        (CalibrateSettings.margin, "15", "margin '15' is not a fraction"),
        (CalibrateSettings.time_limit, "soon", "time-limit 'soon' is not a duration"),
        (CalibrateSettings.device, " ", "device is empty"),
        (TrainSettings.checkpoint, "", "checkpoint is empty"),
        (TrainSettings.drop_last, "maybe", "drop-last 'maybe' is neither true nor false"),
    ],
)
def test_an_invalid_option_value_is_rejected_by_name(option: Option[object], text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings(flags={option.key: text}, environ={}).of(option)


def test_every_option_can_parse_its_own_default() -> None:
    for option in Settings.options():
        setting = Settings(environ={}).of(option)
        assert setting.origin == "default"
        if setting.value is not None:
            text = "true" if setting.value is True else "false" if setting.value is False else str(setting.value)
            assert Settings(flags={option.key: text}, environ={}).of(option).value == setting.value


def test_an_unknown_key_is_rejected_with_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        Settings(environ={}, files=(SettingSource("x.toml", {"calibrate": {"margn": "10%"}}),))
    assert caught.value.what == "x.toml: unknown key 'margn' in [calibrate] (did you mean margin?)"
    assert caught.value.try_ == "margin instead of margn"


def test_the_error_for_a_key_in_the_wrong_table_names_the_right_table() -> None:
    with pytest.raises(UsageError, match=r"epochs does not belong to \[tool.batchcal.calibrate\]") as caught:
        Settings(environ={}, files=(SettingSource("pyproject.toml", {"calibrate": {"epochs": 3}}, prefix="tool.batchcal."),))
    assert caught.value.try_ == "[tool.batchcal.train]\nepochs = 3"


def test_a_list_is_not_a_valid_value() -> None:
    with pytest.raises(UsageError, match=r"x.toml \[calibrate\] margin is not a single value"):
        Settings(environ={}, files=(SettingSource("x.toml", {"calibrate": {"margin": [1]}}),)).of(CalibrateSettings.margin)


def test_an_unknown_table_is_ignored() -> None:
    assert Settings(environ={}, files=(SettingSource("x.toml", {"hpo": {"trials": 3}}),)).non_defaults() == []


def test_a_misspelled_environment_variable_is_reported() -> None:
    ours = {
        "BATCHCAL_CALIBRATION": "x",
        "BATCHCAL_KEY_FILE": "k",
        "BATCHCAL_PLAN_MICRO_BATCH": "8",
        "BATCHCAL_REEXEC": "1:default",
    }
    assert unknown_variables({**ours, "BATCHCAL_MARGIN": "1%", "PATH": "/bin"}, Settings.options()) == ()
    assert unknown_variables({"BATCHCAL_MEMORY_LIMT": "2GiB"}, Settings.options()) == (
        "the variable BATCHCAL_MEMORY_LIMT is not known (did you mean BATCHCAL_MEMORY_LIMIT?); it has no effect",
    )
    assert unknown_variables({"BATCHCAL_QQQQQQQQ": "1"}, Settings.options()) == (
        "the variable BATCHCAL_QQQQQQQQ is not known; it has no effect",
    )


def test_option_keys_are_unique() -> None:
    keys = [option.key for option in Settings.options()]
    assert sorted(set(keys)) == sorted(keys), "flags and variables have no table"


@pytest.mark.parametrize(
    ("settings", "what", "try_"),
    [
        ({"flags": {"workers": "4"}}, "--workers 4 is too many", "--workers 2, or --margin 10%"),
        ({"environ": {"BATCHCAL_WORKERS": "4"}}, "BATCHCAL_WORKERS 4 is too many", "BATCHCAL_WORKERS=2, or --margin 10%"),
        (
            {"files": (SettingSource("x.toml", {"calibrate": {"workers": 4, "margin": "5%"}}),)},
            "x.toml [calibrate] workers 4 is too many",
            'workers = 2 in x.toml [calibrate], or margin = "10%" in x.toml [calibrate]',
        ),
    ],
)
def test_an_error_names_the_flag_variable_or_key_that_the_user_set(settings: dict[str, object], what: str, try_: str) -> None:
    flags, environ, files = settings.get("flags"), settings.get("environ", {}), settings.get("files", ())
    assert flags is None or isinstance(flags, dict)
    assert isinstance(environ, dict)
    assert isinstance(files, tuple)
    error = Settings(flags=flags, environ=environ, files=files).respelled(
        UsageError("workers 4 is too many", try_="--workers 2, or --margin 10%")
    )
    assert (error.what, error.try_) == (what, try_)


def test_an_error_about_contradictory_settings_names_each_of_them_once() -> None:
    settings = Settings(environ={}, files=(SettingSource("x.toml", {"calibrate": {"max_batch": 8, "multiple_of": 32}}),))
    error = settings.respelled(UsageError("no batch is a multiple of 32", try_="--max-batch 32 or a smaller --multiple-of"))
    assert error.what == "x.toml [calibrate] max_batch: no batch is a multiple of 32"
    assert error.try_ == "max_batch = 32 in x.toml [calibrate] or a smaller multiple_of in x.toml [calibrate]"
