"""Settings of a study, read from its config.

[task]
spec = "train.py:task"
[task.args]                 # the same in every trial
horizon = 24
[train]                     # as for `batchcal train`; sampled values replace them
epochs = 27
patience = 10
[hpo]
study = "patchtst"
trials = 60
metric = "mse"              # of the task's metrics; default: loss
[hpo.space]
learning_rate = { kind = "log_uniform", low = 1e-4, high = 1e-2 }
batch_size = { kind = "categorical", choices = [16, 32, 64, 128] }
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from batchcal.core.errors import UsageError
from batchcal.core.suggest import closest
from batchcal.core.units import parse_count
from batchcal.core.values import Frozen
from batchcal.hpo.search.space import Space, read_space
from batchcal.values.settings import Settings
from batchcal.workload.spec.config import Config

PATIENCE: Final = 10
MIN_DELTA: Final = 0.001
TRIALS: Final = 2_000


class PrunerSettings(Frozen):
    """Settings of the pruner, which stops trials that will not win."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: Literal["hyperband", "halving", "median", "none"] = "hyperband"
    """`hyperband`, `halving`, `median` or `none`."""
    min_resource: int = Field(default=1, ge=1)
    """Epochs, over all folds, before which no trial is pruned."""
    reduction_factor: int = Field(default=3, ge=2)
    """One trial of so many continues after each rung."""
    bootstrap_count: int | None = Field(default=None, ge=0)
    """Trials that reach a rung before it prunes. Default: by the number of trials."""
    patience: int = Field(default=2, ge=1)
    """Epochs of a fold without a better result before a trial may be pruned."""
    min_delta: float = Field(default=MIN_DELTA, ge=0)
    """A result is better only if it improves by more than this."""


_USED: Final = {"halving": ("min_resource", "reduction_factor", "bootstrap_count"), "median": ("min_resource",), "none": ()}
"""Keys that have an effect, by pruner. For a pruner that is not listed, all keys do."""


class StudySettings(Frozen):
    """The [hpo] table."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    study: str = Field(min_length=1, max_length=100)
    """Name of the study."""
    trials: int = Field(default=TRIALS, ge=1)
    """Trials of the study in all, however often it is started."""
    storage: str | None = None
    """A file, `sqlite:///file` or `postgresql://...`. Default: a journal file in .batchcal, named after the study."""
    metric: str = "loss"
    """`loss` of the evaluation, or a metric of the task."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """`minimize` or `maximize`."""
    folds: int = Field(default=0, ge=0)
    """Folds of a cross-validation over the training data. 0: the task's own evaluation data."""
    seed: int = Field(default=0, ge=0)
    """Random seed of sampling and training."""
    budget: int | None = Field(default=None, ge=1)
    """Largest number of parameters of a model. Default: as many as fit."""
    stall_limit_s: float = Field(default=300.0, gt=0)
    """Seconds without an optimizer step or an evaluation batch after which a trial counts as hanging."""
    trial_limit_s: float | None = Field(default=None, gt=0)
    """Seconds after which a trial counts as hanging. Default: no limit."""
    pruner: PrunerSettings = PrunerSettings()
    """Settings of the pruner, which stops trials that will not win."""

    @model_validator(mode="after")
    def _folds(self) -> StudySettings:
        if self.folds == 1:
            raise ValueError("folds = 1 leaves no data for training; folds = 0 trains without cross-validation")
        return self


_KEYS: Final = tuple(StudySettings.model_fields)
_TEXTS: Final = ("study", "storage", "metric", "direction")
"""Keys whose value is text, even if it looks like a number."""
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._= -]*[A-Za-z0-9])?")


def study_of(config: Config, place: str) -> tuple[StudySettings, Space]:
    """Return the settings and the space of a study.

    Args:
        place: the config as the user named it, for messages.

    Raises:
        UsageError: [hpo] is missing, or it has an unknown key or invalid values. All invalid values are reported at once.
    """
    table = config.tables.get("hpo")
    if table is None:
        raise UsageError(
            f"{place} has no table [hpo]",
            known="this table describes a study",
            try_='[hpo] with study = "name", and [hpo.space] below it',
        )
    values = {key: value for key, value in table.items() if key != "space"}
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, (*_KEYS, "space"), n=1)
            raise UsageError(
                f"{place}: unknown key {key!r} in [hpo]" + (f" (did you mean {close[0]}?)" if close else ""),
                known=f"valid keys: {', '.join((*_KEYS, 'space'))}",
                try_=f"{close[0]} instead of {key}" if close else f"remove {key}",
            )
    if isinstance(values.get("budget"), str):
        values["budget"] = parse_count(str(values["budget"]), name="budget")
    if isinstance(values.get("pruner"), str):
        values["pruner"] = {"name": values["pruner"]}
    try:
        settings = StudySettings.model_validate(values)
    except ValidationError as error:
        unknown = next((detail for detail in error.errors() if detail["type"] == "literal_error"), None)
        if unknown is not None and len(error.errors()) == 1:
            raise _invalid_choice(place, unknown["loc"], str(unknown["input"]), unknown["msg"]) from None
        raise UsageError(
            f"{place} [hpo]: " + "; ".join(_field_text(detail["loc"], detail["msg"]) for detail in error.errors()),
            try_='study = "patchtst"' if "study" not in values else "a value listed in docs/settings.md",
        ) from None
    pruner = values.get("pruner")
    used = _USED.get(settings.pruner.name)
    idle = sorted({str(key) for key in pruner} - {"name", *used}) if used is not None and isinstance(pruner, Mapping) else []
    if idle:
        raise UsageError(
            f"{place} [hpo]: the pruner {settings.pruner.name} does not use {', '.join(idle)}",
            known=f"it uses {', '.join(used or ()) or 'no other keys'}",
            try_=f'pruner = "hyperband", or remove {", ".join(idle)}',
        )
    if not _NAME.fullmatch(settings.study):
        raise UsageError(
            f"{place} [hpo]: study {settings.study!r} is not a valid name",
            known="a name has letters and digits, and between them also . - _ = and spaces, because files get this name",
            try_='study = "patchtst-2M-h5"',
        )
    return settings, read_space(table.get("space"), f"{place} [hpo.space]")


def with_changes(config: Config, changes: Iterable[str]) -> Config:
    """Return `config` with each `--set NAME=VALUE`: a key of [hpo], of another table of settings, else an argument of the task.

    Raises:
        UsageError: a change has no name, or concerns something that is not a single value.
    """
    tables = dict(config.tables)
    hpo = dict(tables.get("hpo", {}))
    reference = config.reference
    for change in changes:
        name, equals, text = change.partition("=")
        name = name.strip()
        if not equals or not name.replace(".", "_").isidentifier():
            raise UsageError(f"--set {change!r} is not NAME=VALUE", try_="--set trials=20 --set budget=2M")
        if name == "space":
            raise UsageError(
                "--set cannot change the space", known="[hpo.space] is a table", try_="change [hpo.space] in the config"
            )
        if name in _KEYS:
            hpo[name] = text.strip() if name in _TEXTS else _value(text)
        elif name.startswith("pruner."):
            current = hpo.get("pruner", {})
            pruner = {"name": current} if isinstance(current, str) else dict(current) if isinstance(current, Mapping) else {}
            hpo["pruner"] = {**pruner, name.removeprefix("pruner."): _value(text)}
        elif (table := next((table for table, keys in Settings.keys().items() if name in keys), None)) is not None:
            tables[table] = {**tables.get(table, {}), name: _value(text)}
        elif reference is None:
            raise UsageError(
                f"--set {name}: this is not a setting, and the config has no [task] with arguments",
                known=f"keys of [hpo] are {', '.join(_KEYS)}",
                try_='[task]\nspec = "train.py:task"',
            )
        else:
            reference = reference.model_copy(update={"arguments": {**reference.arguments, name: _value(text)}})
    return config.model_copy(update={"reference": reference, "tables": {**tables, "hpo": hpo}})


def as_toml(config: Config) -> dict[str, object]:
    """Return the config as a document that `read_config` can read."""
    document: dict[str, object] = {}
    if config.reference is not None:
        document["task"] = {"spec": config.reference.spec, "args": dict(config.reference.arguments)}
    return {**document, **config.tables}


def _invalid_choice(place: str, location: tuple[int | str, ...], value: str, message: str) -> UsageError:
    """Return the error for a value that is not among the choices in pydantic's `message`."""
    choices = re.findall(r"'([^']*)'", message)
    name, close = ".".join(str(part) for part in location), closest(value, choices)
    key = name.removesuffix(".name")
    return UsageError(
        f"{place} [hpo] {key} {value!r} is not valid" + (f" (did you mean {close}?)" if close else ""),
        known=f"valid values: {', '.join(choices)}",
        try_=f'{key} = "{close or choices[0]}" in {place} [hpo]',
    )


def _value(text: str) -> str | int | float | bool:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _field_text(location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in location)
    text = message.removeprefix("Value error, ")
    text = {"Extra inputs are not permitted": "is unknown", "Field required": "is missing"}.get(text, text)
    return f"{name}: {text}" if name else text
