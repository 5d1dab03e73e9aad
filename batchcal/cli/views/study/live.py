"""A study while it runs, on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from batchcal.cli.views.live import Screen
from batchcal.cli.views.run.plot import number
from batchcal.cli.views.study.view import Trials
from batchcal.cli.views.study.words import counts_line, parameters_of, shown
from batchcal.core.progress import Field, Fields
from batchcal.core.units import count_of, format_seconds
from batchcal.hpo.seen import StudySeen

_BAR: Final = 30
_MOST_ROWS: Final = 14
_MOST_NOTES: Final = 3


class StudyLive(Screen):
    """How far it is, the best so far, the trials that run and the best of the others."""

    def __init__(self, *, console: Console | None = None) -> None:
        self._seen: StudySeen | None = None
        self._notes: list[str] = []
        self._doing: dict[Field, str] = {}
        self._closed = False
        super().__init__(console=console, ticking=True)

    def see(self, seen: StudySeen) -> None:
        """How it stands now."""
        self._seen = seen

    def note(self, name: str, fields: Fields) -> None:
        match name:
            case "notice":
                self._notes.append(str(fields.get("text")))
            case "worker_died":
                self._doing.pop(fields.get("worker"), None)
                self._notes.append(f"worker {fields.get('worker')} {fields.get('how')}; {fields.get('action')}")
            case "shape_calibrated":
                self._doing.pop(fields.get("worker"), None)
            case "shape_started":
                self._doing[fields.get("worker")] = f"calibrating {fields.get('shape')}"
            case "trial_ended":
                self._doing.pop(fields.get("worker"), None)
                if fields.get("state") == "failed":
                    self._notes.append(f"trial {fields.get('trial')} failed ({fields.get('kind')}): {fields.get('why')}")

    def close(self) -> None:
        # What comes next shows the same, and stays.
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

    def _head(self, seen: StudySeen) -> list[Text]:
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
