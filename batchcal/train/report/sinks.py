"""Other loggers of the same run: whatever has `log(values, step)`, as a run of Weights & Biases has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from batchcal.core.errors import Interrupted
from batchcal.core.progress import Fields
from batchcal.train.report.events import EPOCH_ENDED, EVAL, RECOVERED, RESIZED, STEP

EVERY_S: Final = 0.05
"""Steps are told this often at most: a call takes 50 us and more, and nobody looks at twenty points a second. The log has
all of them."""
PATIENCE: Final = 3
"""Failures in a row, after which a sink is left alone: it may wait for a network each time."""
_PLACES: Final = frozenset({"step", "global_step"})
"""Where, not how much."""
_GROUPS: Final = {STEP: "train", EPOCH_ENDED: "epoch", RECOVERED: "recovered", RESIZED: "resized"}


class Sink(Protocol):
    """Takes numbers by name."""

    def log(self, values: dict[str, float], step: int, /) -> object:
        """`step` counts optimizer steps over the whole run and never goes back. One that has `flush()`, too, is asked to after
        each epoch."""
        ...


class Forwarder:
    """Tells a sink the numbers of each event: `train/loss`, `train/loss_text`, `epoch/samples_per_s`, `eval/accuracy`.

    A sink that fails is told about once; after three failures in a row it hears no more.
    """

    def __init__(
        self, sink: Sink, *, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic, every_s: float = EVERY_S
    ) -> None:
        self._sink, self._tell, self._clock, self._every_s = sink, tell, clock, every_s
        self._step = 0
        self._next = -float("inf")
        self._failures, self._told = 0, False

    def event(self, name: str, fields: Fields) -> None:
        group = _GROUPS.get(name)
        if group is None or self._failures >= PATIENCE:
            return
        if name == STEP:
            step = fields.get("global_step")
            self._step = max(step, self._step) if isinstance(step, int) else self._step + 1
            now = self._clock()
            if now < self._next:
                return
            self._next = now + self._every_s
        try:
            self._sink.log(dict(_numbers(group, fields)), self._step)
            flush = getattr(self._sink, "flush", None) if name == EPOCH_ENDED else None
            if callable(flush):
                flush()
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - somebody else's code: whatever it does, training goes on
            self._failed(error)
        else:
            self._failures = 0

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        whose = f"the logger {type(self._sink).__name__}"
        if not self._told:
            self._told = True
            self._tell(f"{whose} failed: {type(error).__name__}: {error}; training goes on")
        if self._failures == PATIENCE:
            self._tell(f"{whose} failed {PATIENCE} times in a row and is told nothing more")


def _numbers(group: str, fields: Fields) -> Iterator[tuple[str, float]]:
    for key, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, float | int):
            continue
        if key == "epoch":
            yield key, value
        elif key.startswith(EVAL):
            yield f"eval/{key[len(EVAL) :]}", value
        elif key not in _PLACES:
            yield f"{group}/{key}", value
