"""Settings: flags > BATCHCAL_* > config file > project file > defaults. Each value knows where it came from.

The files are read elsewhere and arrive here as tables. A value is text until its knob reads it, wherever it came from, so that
`--margin 15%`, `BATCHCAL_MARGIN=15%` and `margin = "15%"` mean the same.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from batchcal.core.errors import UsageError
from batchcal.core.units import parse_duration, parse_fraction, parse_size

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Word = TypeVar("Word", bound=str)
Table = Mapping[str, object]

PREFIX: Final = "BATCHCAL_"
OTHER_VARIABLES: Final = ("BATCHCAL_CALIBRATION", "BATCHCAL_KEY_FILE")
"""Variables of ours that are no settings."""
_OURS: Final = ("BATCHCAL_PLAN_", "BATCHCAL_REEXEC", "BATCHCAL_ZYGOTE_")
"""Set by batchcal itself: a plan in force, a process that was started anew."""


@dataclass(frozen=True)
class Setting(Generic[T_co]):
    """A value with where it came from: `flag --margin`, `env BATCHCAL_MARGIN`, `x.toml [calibrate] margin`, `default`."""

    value: T_co
    origin: str


@dataclass(frozen=True)
class Knob(Generic[T_co]):
    """A setting that there is: its table and key in a file, how its text is read, and what holds where nobody sets it."""

    table: str
    key: str
    read: Callable[[str, str], T_co]
    """(text, name for messages) -> value; raises UsageError."""
    default: T_co

    @property
    def flag(self) -> str:
        """`--time-limit`."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """`BATCHCAL_TIME_LIMIT`."""
        return PREFIX + self.key.upper()


def _fraction(text: str, name: str) -> float | None:
    return parse_fraction(text, name=name)


def _size(text: str, name: str) -> int | None:
    return parse_size(text, name=name)


def _duration(text: str, name: str) -> float:
    return parse_duration(text, name=name)


def _text(text: str, name: str) -> str:
    if not text.strip():
        raise UsageError(f"{name} is empty", try_=f"--{name} with a value, or without it")
    return text.strip()


def _optional_text(text: str, name: str) -> str | None:
    return _text(text, name)


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} {text!r} is not a whole number", try_=f"--{name} 8") from None


def _count(text: str, name: str) -> int:
    number = _whole(text, name)
    if number < 1:
        raise UsageError(f"{name} {number} is below 1", try_=f"--{name} 8")
    return number


def _optional_count(text: str, name: str) -> int | None:
    return _count(text, name)


def _count_from_zero(text: str, name: str) -> int:
    number = _whole(text, name)
    if number < 0:
        raise UsageError(f"{name} {number} is negative", try_=f"--{name} 0")
    return number


def _optional_count_from_zero(text: str, name: str) -> int | None:
    return _count_from_zero(text, name)


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"{name} {text!r} is no number of 0 or more", try_=f"--{name} 0.1")
    return number


def _optional_number(text: str, name: str) -> float | None:
    return _number(text, name)


def _share(text: str, name: str) -> float:
    return parse_fraction(text, name=name)


def _optional_share(text: str, name: str) -> float | None:
    return _share(text, name)


def _one_of(*words: Word) -> Callable[[str, str], Word]:
    def read(text: str, name: str) -> Word:
        for word in words:
            if word == text.strip():
                return word
        raise UsageError(f"there is no {name} {text!r}", known=f"there are {', '.join(words)}", try_=f"--{name} {words[0]}")

    return read


def _flag(text: str, name: str) -> bool:
    switch = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.strip().lower())
    if switch is None:
        raise UsageError(f"{name} {text!r} is neither true nor false", try_=f"{name} = true")
    return switch


MARGIN: Final = Knob("calibrate", "margin", _fraction, None)
"""None: 15 % on a CPU, 10 % on an accelerator."""
HEADROOM: Final = Knob("calibrate", "headroom", _fraction, None)
MEMORY_LIMIT: Final = Knob("calibrate", "memory_limit", _size, None)
TIME_LIMIT: Final = Knob("calibrate", "time_limit", _duration, 60.0)
MAX_PROBES: Final = Knob("calibrate", "max_probes", _optional_count, None)
SAMPLES: Final = Knob("calibrate", "samples", _optional_count, None)
MAX_BATCH: Final = Knob("calibrate", "max_batch", _optional_count, None)
MULTIPLE_OF: Final = Knob("calibrate", "multiple_of", _count, 1)
DEVICE: Final = Knob("calibrate", "device", _text, "auto")
ALLOCATOR: Final = Knob("calibrate", "allocator", _text, "auto")
ACTIVATION_CHECKPOINTING: Final = Knob("calibrate", "activation_checkpointing", _text, "off")
"""`off`, `auto`, or names of modules."""
WORKERS: Final = Knob("calibrate", "workers", _optional_count_from_zero, None)
"""None: to be found."""
SEED: Final = Knob("calibrate", "seed", _count_from_zero, 0)
EFFECTIVE_BATCH: Final = Knob("plan", "effective_batch", _optional_count, None)
"""None: the capacity."""
OBJECTIVE: Final = Knob("plan", "objective", _text, "throughput")
EPOCHS: Final = Knob("train", "epochs", _count, 1)
CHECKPOINT: Final = Knob("train", "checkpoint", _optional_text, None)
CHECKPOINT_EVERY: Final = Knob("train", "checkpoint_every", _duration, 600.0)
"""Seconds; within an epoch."""
DROP_LAST: Final = Knob("train", "drop_last", _flag, False)
LOG: Final = Knob("train", "log", _optional_text, None)
"""None: run.jsonl in the folder of the calibration."""
TENSORBOARD: Final = Knob("train", "tensorboard", _optional_text, None)
PATIENCE: Final = Knob("train", "patience", _optional_count, None)
"""None: early stopping is off."""
MIN_DELTA: Final = Knob("train", "min_delta", _number, 0.0)
WATCH: Final = Knob("train", "watch", _text, "loss")
WATCH_MODE: Final[Knob[Literal["min", "max"]]] = Knob("train", "watch_mode", _one_of("min", "max"), "min")
SCHEDULE: Final[Knob[Literal["constant", "linear", "cosine"]]] = Knob(
    "train", "schedule", _one_of("constant", "linear", "cosine"), "constant"
)
WARMUP: Final = Knob("train", "warmup", _share, 0.0)
LR_RULE: Final[Knob[Literal["none", "linear", "sqrt"]]] = Knob("train", "lr_rule", _one_of("none", "linear", "sqrt"), "none")
LR_REFERENCE_BATCH: Final = Knob("train", "lr_reference_batch", _optional_count, None)
"""None: the plan's effective batch."""
MAX_NORM: Final = Knob("train", "max_norm", _optional_number, None)
BATCHING: Final[Knob[Literal["plain", "greedy", "bucketed"]]] = Knob(
    "train", "batching", _one_of("plain", "greedy", "bucketed"), "plain"
)
BALANCE: Final = Knob("train", "balance", _share, 0.5)
WINDOW: Final = Knob("train", "window", _optional_count, None)
LOSS_WEIGHTS: Final[Knob[Literal["task", "gradnorm", "gradnorm-paper"]]] = Knob(
    "train", "loss_weights", _one_of("task", "gradnorm", "gradnorm-paper"), "task"
)
START_MICRO_BATCH: Final = Knob("train", "start_micro_batch", _optional_count, None)
GROW_BELOW: Final = Knob("train", "grow_below", _share, 0.5)
GROW_AFTER: Final = Knob("train", "grow_after", _count, 10)
SHRINK_ABOVE: Final = Knob("train", "shrink_above", _optional_share, None)
"""None: what the margin of the calibration leaves."""
SHRINK_AFTER: Final = Knob("train", "shrink_after", _count, 3)
ON_OOM: Final[Knob[Literal["stop", "split"]]] = Knob("train", "on_oom", _one_of("stop", "split"), "stop")
FENCE: Final = Knob("train", "fence", _flag, True)

KNOBS: Final[tuple[Knob[object], ...]] = (
    *(MARGIN, HEADROOM, MEMORY_LIMIT, TIME_LIMIT, MAX_PROBES, SAMPLES, MAX_BATCH, MULTIPLE_OF, DEVICE, ALLOCATOR, WORKERS, SEED),
    *(ACTIVATION_CHECKPOINTING, EFFECTIVE_BATCH, OBJECTIVE),
    *(
        EPOCHS,
        CHECKPOINT,
        CHECKPOINT_EVERY,
        DROP_LAST,
        LOG,
        TENSORBOARD,
        PATIENCE,
        MIN_DELTA,
        WATCH,
        WATCH_MODE,
        SCHEDULE,
        WARMUP,
    ),
    *(SCHEDULE, WARMUP, LR_RULE, LR_REFERENCE_BATCH, MAX_NORM),
    *(
        BATCHING,
        BALANCE,
        WINDOW,
        LOSS_WEIGHTS,
        START_MICRO_BATCH,
        GROW_BELOW,
        GROW_AFTER,
        SHRINK_ABOVE,
        SHRINK_AFTER,
        ON_OOM,
        FENCE,
    ),
)
KEYS: Final[dict[str, dict[str, str]]] = {
    table: {knob.key: knob.variable for knob in KNOBS if knob.table == table} for table in ("calibrate", "plan", "train")
}
"""By table: the variable of each key."""
_JUDGED: Final = tuple(KEYS)


@dataclass(frozen=True)
class Source:
    """The tables of one file."""

    name: str
    """As the user knows it: `configs/x.toml`."""
    tables: Mapping[str, Table]
    prefix: str = ""
    """`tool.batchcal.` in a pyproject.toml."""

    def place(self, table: str, key: str) -> str:
        """`configs/x.toml [calibrate] margin`."""
        return f"{self.name} [{self.prefix}{table}] {key}"


class Settings:
    """All the places that a value may come from, the strongest first."""

    def __init__(
        self,
        *,
        flags: Mapping[str, str | None] | None = None,
        spelled: Mapping[str, str] | None = None,
        environ: Mapping[str, str],
        files: Iterable[Source] = (),
    ) -> None:
        """Args:
            flags: by key, as typed; None where a flag was not given.
            spelled: the flags that are called otherwise than their key, by key.
            files: the strongest first.

        Raises:
            UsageError: a file has a key that there is not.
        """
        self._flags = {key: text for key, text in (flags or {}).items() if text is not None}
        self._spelled = spelled or {}
        self._environ = environ
        self._files = tuple(files)
        for file in self._files:
            _judge(file)

    def of(self, knob: Knob[T]) -> Setting[T]:
        """The value that holds.

        Raises:
            UsageError: it cannot be read; says where it stands.
        """
        name = knob.key.replace("_", "-")
        if knob.key in self._flags:
            flag = self._spelled.get(knob.key, knob.flag)
            return Setting(knob.read(self._flags[knob.key], flag.removeprefix("--")), f"flag {flag}")
        # Empty is not set: `docker -e NAME=` and a shell's `NAME= command` mean that.
        text = self._environ.get(knob.variable)
        if text:
            return _read(knob, name, text, f"env {knob.variable}")
        for file in self._files:
            table = file.tables.get(knob.table, {})
            if knob.key in table:
                place = file.place(knob.table, knob.key)
                return _read(knob, name, _as_text(table[knob.key], place, knob.key), place)
        return Setting(knob.default, "default")

    def value(self, knob: Knob[T]) -> T:
        """The value alone."""
        return self.of(knob).value

    def given(self) -> list[tuple[str, str, str, str]]:
        """(table, key, value, origin) of every setting that somebody gave, as `of` reads it."""
        found = ((knob, self.of(knob)) for knob in KNOBS)
        return [
            (knob.table, knob.key, str(setting.value), setting.origin) for knob, setting in found if setting.origin != "default"
        ]


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each BATCHCAL_* variable that nobody reads: a misspelt setting would be silently ignored."""
    known = [*OTHER_VARIABLES, *(knob.variable for knob in KNOBS)]
    strange = (name for name in sorted(environ) if name.startswith(PREFIX) and not name.startswith(_OURS) and name not in known)
    return tuple(f"the variable {name} is not known{_meant(name, known)}; it has no effect" for name in strange)


def _meant(name: str, known: Iterable[str]) -> str:
    # Without the prefix, which makes all of them alike.
    close = difflib.get_close_matches(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known], n=1)
    return f" (did you mean {PREFIX}{close[0]}?)" if close else ""


def _read(knob: Knob[T], name: str, text: str, origin: str) -> Setting[T]:
    try:
        return Setting(knob.read(text, name), origin)
    except UsageError as error:
        raise UsageError(f"{origin}: {error.what}", known=error.known, try_=error.try_) from None


def _as_text(value: object, place: str, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(f"{place} is not a single value", known=f"it is {value!r}", try_=f'{key} = "..."')


def _judge(file: Source) -> None:
    for table in _JUDGED:
        for key in file.tables.get(table, {}):
            if key in KEYS[table]:
                continue
            elsewhere = next((other for other in _JUDGED if key in KEYS[other]), None)
            hint = f"; it belongs to [{file.prefix}{elsewhere}]" if elsewhere else ""
            raise UsageError(
                f"{file.name}: unknown key {key!r} in [{file.prefix}{table}]" + _did_you_mean(key, KEYS[table]),
                known=f"keys there are: {', '.join(KEYS[table])}{hint}",
                try_=_instead(key, KEYS[table]),
            )


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _instead(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"{close[0]} instead of {name}" if close else f"remove {name}"
