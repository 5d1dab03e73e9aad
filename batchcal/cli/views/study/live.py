"""Live view of a study on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.live import Screen
from batchcal.cli.views.study.view import Trials
from batchcal.cli.views.study.words import counts_line, parameters_of, ranked_trials
from batchcal.core.progress import Notice
from batchcal.core.units import count_of, format_seconds
from batchcal.hpo.study_status import StudyStatus
from batchcal.values.study_events import (
    AcceleratorFound,
    FromWorker,
    ShapeCalibrated,
    ShapeStarted,
    StudyEvent,
    StudyStarted,
    StudyWorkerDied,
    TrialEnded,
    TrialReached,
    TrialStarted,
    WorkerEvent,
)

_BAR: Final = 30
_MOST_ROWS: Final = 14
_MOST_NOTES: Final = 3


class StudyLive(Screen[StudyEvent]):
    """Live view: progress, the best value so far, the running trials and the best of the others."""

    def __init__(self, *, console: Console | None = None) -> None:
        self._study: StudyStatus | None = None
        self._notes: list[str] = []
        self._activities: dict[int | None, str] = {}
        """Current activity by worker. None: the only worker."""
        self._closed = False
        super().__init__(console=console, ticking=True)

    def update(self, study: StudyStatus) -> None:
        """Update the state of the study."""
        self._study = study

    def note(self, event: StudyEvent, /) -> None:
        match event:
            case FromWorker():
                self._record_worker_event(event.event, event.worker)
            case StudyWorkerDied():
                self._activities.pop(event.worker, None)
                self._activities.pop(None, None)
                self._notes.append(f"worker {event.worker} {event.how}; {event.action}")
            case StudyStarted():
                pass
            case _:
                self._record_worker_event(event, None)

    def _record_worker_event(self, event: WorkerEvent, worker: int | None) -> None:
        match event:
            case Notice():
                self._notes.append(event.text)
            case ShapeCalibrated():
                self._activities.pop(worker, None)
            case ShapeStarted():
                self._activities[worker] = f"calibrating {event.shape}"
            case TrialEnded():
                self._activities.pop(worker, None)
                if event.state == "failed":
                    self._notes.append(f"trial {event.trial} failed ({event.kind}): {event.why}")
            case TrialStarted() | TrialReached() | AcceleratorFound():
                pass  # trials are read from the storage
            case _:
                pass  # an event of a calibration, which `shape_started` summarizes

    def close(self) -> None:
        # The next output shows the same and stays.
        self._closed = True

    def draw(self) -> RenderableType:
        study = self._study
        notes = [Text(f"  - {text}", style="dim", no_wrap=True, overflow="ellipsis") for text in self._notes[-_MOST_NOTES:]]
        if self._closed:
            return Group(*notes)
        if study is None:
            return Text(" starting the study", style="dim")
        most_rows = max(self.height - 6 - min(len(self._notes), _MOST_NOTES) - len(self._activities), 4)
        activities = [Text(f"  {text}", style="cyan", no_wrap=True, overflow="ellipsis") for text in self._activities.values()]
        trials = Trials(study, ranked_trials(study)[: min(most_rows, _MOST_ROWS)])
        return Group(*self._head(study), trials, *activities, *notes)

    def _head(self, study: StudyStatus) -> list[Text]:
        share = min(study.done / max(study.wanted, 1), 1.0)
        filled, left_s, best = round(share * _BAR), study.left_s(), study.best()
        lines = [
            Text.assemble(
                ("study ", "bold"),
                f"{study.name}  ",
                ("█" * filled, "cyan"),
                ("░" * (_BAR - filled), "dim"),
                f" {study.done} of {count_of(study.wanted, 'trial')}",
                f", {format_seconds(left_s)} left" if left_s is not None else "",
                no_wrap=True,
                overflow="ellipsis",
            ),
            Text(f"  {counts_line(study)}", style="dim", no_wrap=True, overflow="ellipsis"),
        ]
        if best is not None and best.value is not None:
            result = f"  best {study.metric} {number(best.value)}, trial {best.number}: {parameters_of(best)}"
            lines.append(Text(result, style="bold green", no_wrap=True, overflow="ellipsis"))
        return lines
