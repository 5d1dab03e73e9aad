"""The one that hears a training and tells everybody else: the log, other loggers, the screen."""

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
    """Listens to a training: give it to `train` as its `progress`.

    Every event goes to the log first, then to the sinks and to the view. `epoch_ended` leaves with what its steps came to:
    means of the tasks' losses and of gradient norms, the largest prediction and measurement, the last size and learning rate,
    recoveries and changes. Nobody who listens can stop a training, but a signal can. Where an error ends it, the log says which.

        with TrainingMonitor(Path("runs/first/run.jsonl"), sinks=[wandb.init()]) as monitor:
            train(task, plan, progress=monitor)

    Sinks are closed by whoever made them.
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
            log: the file, by custom `run.jsonl` in a folder of the run. None: no log is kept.
            view: sees all events; what goes wrong with the others is a `notice` to it.
            about: what the loop does not know of the run, such as its `spec` and the version of `batchcal`; joins
                `training_started`.

        Raises:
            UsageError: the log cannot be written there.
        """
        self._log = None if log is None else JsonlLog(log, tell=self._tell, clock=clock)
        self._forwarders = [Forwarder(sink, tell=self._tell) for sink in sinks]
        self._view = view
        self._about = dict(about or {})
        self._before, self._epoch = Sums(), Sums()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._log is not None:
            # The screen is told by whoever catches it.
            self._log.event(STOPPED, {"error": type(error).__name__, "why": str(error)})
        self.close()

    def close(self) -> None:
        """Closes the log."""
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
                self._before.add(self._epoch)
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
        """What the run has come to so far."""
        both = Sums()
        both.add(self._before)
        both.add(self._epoch)
        return both.totals()

    def _show(self, event: TrainingEvent) -> None:
        if self._view is None:
            return
        try:
            self._view.event(event)
        except Interrupted:
            raise
        except Exception:  # noqa: BLE001 - a terminal that is gone, or somebody else's view: training goes on without it
            self._view = None

    def _tell(self, text: str) -> None:
        notice = Notice(text)
        if self._log is not None:
            self._log.event(notice.event_name, notice.fields())
        self._show(notice)
