"""Monitor of a training that passes its events to the log, other loggers and the screen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

from batchcal.core.clock import Clock
from batchcal.core.errors import Interrupted
from batchcal.core.progress import Fields, Notice, Progress
from batchcal.train.report.events import STOPPED
from batchcal.train.report.jsonl import JsonlLog
from batchcal.train.report.sinks import Forwarder, Sink
from batchcal.train.report.sums import Sums, Totals
from batchcal.values.training_events import (
    CheckpointSaved,
    EpochEnded,
    Recovered,
    Resized,
    StepEnded,
    TrainingEnded,
    TrainingEvent,
    TrainingStarted,
)


class TrainingMonitor:
    """Listener of a training: pass it to `train` as `progress`.

    Each event goes first to the log, then to the sinks and the view. `epoch_ended` is extended with aggregates of its steps:
    means of the tasks' losses and of gradient norms, the largest prediction and measurement, the last size and learning rate,
    recoveries and changes. No listener can stop a training, but a signal can. If an error ends it, the log contains the error.

        with TrainingMonitor(Path("runs/first/run.jsonl"), sinks=[wandb.init()]) as monitor:
            train(task, plan, progress=monitor)

    The caller closes the sinks.
    """

    def __init__(
        self,
        log: Path | None,
        *,
        sinks: Iterable[Sink] = (),
        view: Progress[TrainingEvent] | None = None,
        about: Fields | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            log: path of the file, usually `run.jsonl` in a folder of the run. None: no log.
            view: receives all events, and failures of the other listeners as a `notice`.
            about: fields of `training_started` that the loop does not have, such as `spec` and the version of `batchcal`.

        Raises:
            UsageError: the log cannot be written there.
        """
        self._log = None if log is None else JsonlLog(log, report=self._notify, clock=clock)
        self._forwarders = [Forwarder(sink, report=self._notify) for sink in sinks]
        self._view = view
        self._about = dict(about or {})
        self._earlier, self._epoch = Sums(), Sums()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._log is not None:
            # The caller that catches the error shows it on the screen.
            self._log.event(STOPPED, {"error": type(error).__name__, "why": str(error)})
        self.close()

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def event(self, event: TrainingEvent, /) -> None:
        match event:
            case StepEnded():
                self._epoch.step(event.fields())
            case Recovered():
                self._epoch.recovered(event)
            case Resized():
                self._epoch.changed()
            case TrainingStarted():
                event = replace(event, about={**self._about, **event.about})
            case EpochEnded():
                event = replace(event, of_steps=self._epoch.fields())
                self._earlier.add(self._epoch)
                self._epoch = Sums()
            case CheckpointSaved() | TrainingEnded() | Notice():
                pass
            case never:
                assert_never(never)
        name, fields = event.event_name, event.fields()
        if self._log is not None:
            self._log.event(name, fields)
        for forwarder in self._forwarders:
            forwarder.event(name, fields)
        self._show(event)

    def totals(self) -> Totals:
        """Return the totals of the run so far."""
        total = Sums()
        total.add(self._earlier)
        total.add(self._epoch)
        return total.totals()

    def _show(self, event: TrainingEvent) -> None:
        if self._view is None:
            return
        try:
            self._view.event(event)
        except Interrupted:
            raise
        except Exception:  # noqa: BLE001 - a closed terminal, or a view of the user: training continues without it
            self._view = None

    def _notify(self, text: str) -> None:
        notice = Notice(text)
        if self._log is not None:
            self._log.event(notice.event_name, notice.fields())
        self._show(notice)
