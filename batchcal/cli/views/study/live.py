"""Live view of a study on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.live import Screen
from batchcal.cli.views.study.view import Trials
from batchcal.cli.views.study.words import counts_line, parameters_of, shown
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
        self._seen: StudyStatus | None = None
        self._notes: list[str] = []
        self._doing: dict[int | None, str] = {}
        """Current activity by worker. None: the only worker."""
        self._closed = False
        super().__init__(console=console, ticking=True)

    def see(self, seen: StudyStatus) -> None:
        """Update the state of the study."""
        self._seen = seen

    def note(self, event: StudyEvent, /) -> None:
        match event:
            case FromWorker():
                self._worker_told(event.event, event.worker)
            case StudyWorkerDied():
                self._doing.pop(event.worker, None)
                self._doing.pop(None, None)
                self._notes.append(f"worker {event.worker} {event.how}; {event.action}")
            case StudyStarted():
                pass
            case _:
                self._worker_told(event, None)

    def _worker_told(self, event: WorkerEvent, worker: int | None) -> None:
        match event:
            case Notice():
                self._notes.append(event.text)
            case ShapeCalibrated():
                self._doing.pop(worker, None)
            case ShapeStarted():
                self._doing[worker] = f"calibrating {event.shape}"
            case TrialEnded():
                self._doing.pop(worker, None)
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
        seen = self._seen
        notes = [Text(f"  - {text}", style="dim", no_wrap=True, overflow="ellipsis") for text in self._notes[-_MOST_NOTES:]]
        if self._closed:
            return Group(*notes)
        if seen is None:
            return Text(" the study begins", style="dim")
        room = max(self.height - 6 - min(len(self._notes), _MOST_NOTES) - len(self._doing), 4)
        doing = [Text(f"  {text}", style="cyan", no_wrap=True, overflow="ellipsis") for text in self._doing.values()]
        return Group(*self._head(seen), Trials(seen, shown(seen)[: min(room, _MOST_ROWS)]), *doing, *notes)

    def _head(self, seen: StudyStatus) -> list[Text]:
        share = min(seen.done / max(seen.wanted, 1), 1.0)
        filled, left_s, best = round(share * _BAR), seen.left_s(), seen.best()
        lines = [
            Text.assemble(
                ("study ", "bold"),
                f"{seen.name}  ",
                ("█" * filled, "cyan"),
                ("░" * (_BAR - filled), "dim"),
                f" {seen.done} of {count_of(seen.wanted, 'trial')}",
                f", {format_seconds(left_s)} left" if left_s is not None else "",
                no_wrap=True,
                overflow="ellipsis",
            ),
            Text(f"  {counts_line(seen)}", style="dim", no_wrap=True, overflow="ellipsis"),
        ]
        if best is not None and best.value is not None:
            told = f"  best {seen.metric} {number(best.value)}, trial {best.number}: {parameters_of(best)}"
            lines.append(Text(told, style="bold green", no_wrap=True, overflow="ellipsis"))
        return lines
