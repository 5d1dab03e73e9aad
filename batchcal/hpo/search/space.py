"""The search space of a study: the values that each parameter may take. Optuna is not needed before a study runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from batchcal.core.errors import UsageError
from batchcal.core.suggest import closest, did_you_mean
from batchcal.core.values import Frozen
from batchcal.workload.spec.reference import Scalar

if TYPE_CHECKING:
    from optuna import Trial

BATCH_SIZE: Final = "batch_size"
EPOCHS: Final = "epochs"
WARMUP_STEPS: Final = "warmup_steps"
TRAINING_PARAMETERS: Final = (BATCH_SIZE, EPOCHS, WARMUP_STEPS)
"""Parameters of the training of a trial: the effective batch, epochs, optimizer steps of warm-up. All others are passed to the
factory, as arguments by name."""
_EXAMPLES: Final = {
    "uniform": '{ kind = "uniform", low = 0.1, high = 0.3 }',
    "log_uniform": '{ kind = "log_uniform", low = 1e-4, high = 1e-2 }',
    "int": '{ kind = "int", low = 1, high = 8 }',
    "categorical": '{ kind = "categorical", choices = [16, 32, 64] }',
}
_EXAMPLE: Final = f"learning_rate = {_EXAMPLES['log_uniform']}"


class Uniform(Frozen):
    """A number from `low` to `high`, uniformly distributed; with `step`, only low + k x step."""

    kind: Literal["uniform"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)
    shape: bool = False
    """True if the value affects the memory of the model."""

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        _check_order(self.low, self.high)
        return self

    def suggest(self, trial: Trial, name: str) -> Scalar:
        return trial.suggest_float(name, self.low, self.high, step=self.step)


class LogUniform(Frozen):
    """A number from `low` to `high`; each order of magnitude is equally likely."""

    kind: Literal["log_uniform"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    shape: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        _check_order(self.low, self.high)
        return self

    def suggest(self, trial: Trial, name: str) -> Scalar:
        return trial.suggest_float(name, self.low, self.high, log=True)


class Integer(Frozen):
    """An integer from `low` to `high`, both included."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False
    shape: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        _check_order(self.low, self.high)
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("log = true needs low >= 1 and no step")
        return self

    def suggest(self, trial: Trial, name: str) -> Scalar:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)


class Categorical(Frozen):
    """One of `choices`."""

    kind: Literal["categorical"]
    choices: tuple[Scalar, ...] = Field(min_length=1)
    shape: bool = True

    @model_validator(mode="after")
    def _different(self) -> Categorical:
        # True == 1 in Python, but they are different arguments.
        if len({(type(choice), choice) for choice in self.choices}) < len(self.choices):
            raise ValueError("a choice occurs twice")
        return self

    def suggest(self, trial: Trial, name: str) -> Scalar:
        return trial.suggest_categorical(name, self.choices)


Parameter = Annotated[Uniform | LogUniform | Integer | Categorical, Field(discriminator="kind")]
Space = Mapping[str, Uniform | LogUniform | Integer | Categorical]
Values = Mapping[str, Scalar]
"""A value for each parameter of a space."""
_SPACE: Final[TypeAdapter[dict[str, Parameter]]] = TypeAdapter(dict[str, Parameter])
KINDS: Final = ("uniform", "log_uniform", "int", "categorical")


def read_space(table: object, place: str) -> Space:
    """Return the space of a config.

    Args:
        place: `configs/x.toml [hpo.space]`, for messages.

    Raises:
        UsageError: an unknown kind or key, contradictory bounds, a batch size below 1. All errors are reported at once.
    """
    if not isinstance(table, Mapping) or not table:
        raise UsageError(
            f"{place}: there is nothing to search over", known="a study samples at least one parameter", try_=_EXAMPLE
        )
    try:
        space = _SPACE.validate_python(dict(table))
    except ValidationError as error:
        raise UsageError(
            f"{place}: " + "; ".join(_problem(detail["loc"], detail["msg"], table) for detail in error.errors()),
            known=f"valid kinds: {', '.join(KINDS)}",
            try_=_line(error.errors()[0]["loc"], table),
        ) from None
    for name in space:
        if not name.isidentifier() or name == "device":
            raise UsageError(
                f"{place}: {name!r} is not a valid parameter name",
                known="batchcal sets device itself" if name == "device" else "each name is passed to the factory as an argument",
                try_="use the name of an argument of the factory",
            )
    for name in TRAINING_PARAMETERS:
        if name in space and not _counts(space[name], least=0 if name == WARMUP_STEPS else 1):
            raise UsageError(
                f"{place}: {name} has values that are not valid counts",
                known=f"each value is an integer of 1 or more ({WARMUP_STEPS}: 0 or more)",
                try_=f'{name} = {{ kind = "categorical", choices = [16, 32, 64, 128] }}',
            )
    return space


def sample(space: Space, trial: Trial) -> Values:
    """Return a value for each parameter, chosen by the study's sampler."""
    return {name: parameter.suggest(trial, name) for name, parameter in space.items()}


def shape_of(space: Space, values: Values) -> dict[str, Scalar]:
    """Return the values that affect the memory of a trial, except its batch size: integers and choices that are passed to the
    factory, unless a parameter sets it otherwise (`shape = true`, `shape = false`)."""
    return {
        name: values[name] for name, parameter in sorted(space.items()) if parameter.shape and name not in TRAINING_PARAMETERS
    }


def arguments_of(values: Values) -> dict[str, Scalar]:
    """Return the arguments for the factory."""
    return {name: value for name, value in values.items() if name not in TRAINING_PARAMETERS}


def largest(space: Space, name: str, *, default: int) -> int:
    """Return the largest integer that `name` may be, or `default` if it is not sampled."""
    parameter = space.get(name)
    if isinstance(parameter, Integer):
        return parameter.high
    if isinstance(parameter, Categorical):
        return max((choice for choice in parameter.choices if isinstance(choice, int)), default=default)
    return default


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")


def _counts(parameter: Uniform | LogUniform | Integer | Categorical, *, least: int) -> bool:
    if isinstance(parameter, Integer):
        return parameter.low >= least
    if isinstance(parameter, Categorical):
        return all(isinstance(choice, int) and not isinstance(choice, bool) and choice >= least for choice in parameter.choices)
    return False


def _line(location: tuple[int | str, ...], table: Mapping[object, object]) -> str:
    """Return a valid line for the parameter at `location`, of the kind that was probably meant."""
    name = str(location[0]) if location else "learning_rate"
    entry = table.get(name)
    kind = closest(str(entry.get("kind")), KINDS) if isinstance(entry, Mapping) else ""
    return f"{name} = {_EXAMPLES[kind or 'log_uniform']}"


def _problem(location: tuple[int | str, ...], message: str, table: Mapping[object, object]) -> str:
    """`dropout: low 0.3 is above high 0.1`."""
    name = str(location[0]) if location else "the space"
    entry = table.get(name)
    if not isinstance(entry, Mapping):
        return f"{name} is {entry!r}, not a table with a kind"
    if "kind" not in entry:
        return f"{name} has no kind"
    if entry["kind"] not in KINDS:
        return f"{name} is of an unknown kind {entry['kind']!r}{did_you_mean(str(entry['kind']), KINDS)}"
    key = ".".join(str(part) for part in location[2:3])
    text = message.removeprefix("Value error, ")
    text = {"Extra inputs are not permitted": "is unknown", "Field required": "is missing"}.get(text, text)
    if key == "choices" and text.startswith("Tuple should have at least 1 item"):
        text = "is empty"
    return f"{name}: {key} {text}" if key else f"{name}: {text}"
