"""Other loggers of the same run: any object with `log(values, step)`, such as a run of Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from batchcal.core.errors import Interrupted
from batchcal.core.progress import Fields
from batchcal.train.report.events import EPOCH_ENDED, EVAL, RECOVERED, RESIZED, STEP

EVERY_S: Final = 0.05
"""Minimum time between two forwarded steps, seconds: a call takes 50 us or more, and charts do not need twenty points a second.
The log has all steps."""
PATIENCE: Final = 3
"""Number of consecutive failures after which a sink is no longer called: it may wait for a network each time."""
_PLACES: Final = frozenset({"step", "global_step"})
"""Fields that are positions, not quantities."""
_GROUPS: Final = {STEP: "train", EPOCH_ENDED: "epoch", RECOVERED: "recovered", RESIZED: "resized"}


class Sink(Protocol):
    """Receiver of numbers by name."""

    def log(self, values: dict[str, float], step: int, /) -> object:
        """Log values. `step` counts optimizer steps over the complete run and never decreases. If the sink has `flush()`, too, it
        is called after each epoch."""
        ...


class Forwarder:
    """Forwarder of the numbers of each event to a sink: `train/loss`, `train/loss_text`, `epoch/samples_per_s`, `eval/accuracy`.

    The first failure of a sink is reported. After three consecutive failures, the sink is no longer called.
    """

    def __init__(
        self, sink: Sink, *, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic, every_s: float = EVERY_S
    ) -> None:
        self._sink, self._report, self._clock, self._every_s = sink, report, clock, every_s
        self._step = 0
        self._next = -float("inf")
        self._failures, self._reported = 0, False

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
        except Exception as error:  # noqa: BLE001 - code of the user: training continues whatever it raises
            self._failed(error)
        else:
            self._failures = 0

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        logger = f"the logger {type(self._sink).__name__}"
        if not self._reported:
            self._reported = True
            self._report(f"{logger} failed: {type(error).__name__}: {error}; training continues")
        if self._failures == PATIENCE:
            self._report(f"{logger} failed {PATIENCE} times in a row and is no longer called")


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
