"""A calibration on the terminal: header, answer, where the memory goes, the curve, the outcomes, the reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement as Width
from rich.table import Table
from rich.text import Text

from batchcal.calibration.schema import Calibration, Capacity, Finding, Measurement
from batchcal.calibration.stale import Stale
from batchcal.cli.views.calibration.decisions import decisions
from batchcal.cli.views.calibration.speeds import details, plan_and_gain
from batchcal.cli.views.charts.memory import memory_chart
from batchcal.cli.views.charts.plot_text import PlotText
from batchcal.cli.views.words import count, limit_sentence, peak_of, short, tone
from batchcal.core.units import count_of, format_bytes, format_seconds

TONES: Final = {"good": "green", "bad": "red", "odd": "yellow"}
UNFINISHED: Final = {
    "unsettled": "verified, but the search for better settings did not finish (see below)",
    "predicted": "this is a dry run. Memory and speed are assumed; nothing was run or saved",
    "partial": "the calibration ended before a batch size was verified. To continue: batchcal calibrate",
}
"""Sentences about the statuses other than `complete`."""
OUT_OF_TIME: Final = 0.9
"""Share of the time limit from which an unfinished search is taken to need more time."""
_BAR_WIDTH: Final = 10
_BAR_FROM: Final = 78
_PREDICTED_FROM: Final = 66
_RATE_FROM: Final = 54
"""Widths of the console, in characters, from which the table of outcomes has these columns."""
_CURVE_ROWS: Final = 14
_PLACE_WIDTH: Final = 15


@dataclass(frozen=True)
class ShownCalibration:
    """A calibration to show, with its path and its freshness now."""

    calibration: Calibration
    path: Path | None
    stale: Stale | None
    at: datetime
    notices: tuple[str, ...] = ()

    @property
    def freshness(self) -> str:
        """`fresh for 6 d 3 h`, `stale: expired`, `partial: no plan yet`, `not saved`, `assumed, not saved`."""
        if self.calibration.status == "predicted":
            return "assumed, not saved"
        if self.path is None:
            return "not saved"
        if self.stale is not None:
            return f"stale: {self.stale.reason}"
        if self.calibration.status == "partial":
            return "partial: no plan yet"
        return f"fresh for {format_seconds(max((self.calibration.expires_at - self.at).total_seconds(), 0))}"


def show(shown: ShownCalibration, *, why: bool = False) -> Iterator[RenderableType]:
    """Yield the complete view, from top to bottom."""
    yield from answer(shown)
    calibration = shown.calibration
    if calibration.measurements:
        yield Text("")
        yield _Outcomes(calibration)
    yield from details(calibration)
    yield from remarks(shown)
    if why:
        yield Text("")
        yield from reasons(calibration)


def answer(shown: ShownCalibration) -> Iterator[RenderableType]:
    """Yield the header, the sizes, their limits, the use of memory, the curve."""
    calibration = shown.calibration
    yield from _header(shown)
    yield Text("")
    finding = calibration.finding()
    if finding is None:
        yield Text("  no batch size is verified yet", style="bold yellow")
        return
    yield _sizes(calibration, finding)
    others = [other for other in calibration.findings if other is not finding]
    for other in others:
        text = f"  {other.device}, {other.allocator}: train {count(other.train.batch)}"
        text += f", eval {count(other.eval.batch)}" if other.eval else ""
        yield Text(f"{text}, {count(other.train.samples_per_s)} samples/s", style="dim")
    yield Text("")
    yield from plan_and_gain(calibration)
    yield Text("")
    yield MemoryBar(calibration, finding)
    chart = memory_chart(calibration, finding)
    if chart is not None:
        yield Text("")
        yield PlotText(chart, height=_CURVE_ROWS)


def _header(shown: ShownCalibration) -> Iterator[RenderableType]:
    calibration = shown.calibration
    style = "green" if shown.stale is None and shown.path is not None else "bold yellow"
    line = Table.grid(expand=True)
    line.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(Text(calibration.task.spec, style="bold"), Text(shown.freshness, style=style))
    yield line
    created = calibration.created_at.strftime("%Y-%m-%d %H:%M UTC")
    probes = count_of(len(calibration.measurements), "probe")
    source = "assumed" if calibration.status == "predicted" else "measured"
    yield Text(
        f"{calibration.chosen_device}, allocator {calibration.policy}, {source} {created} "
        f"with {probes} in {format_seconds(calibration.wall_s)}",
        style="dim",
    )
    if shown.stale is not None:
        yield Text(f"{shown.stale.reason}: {shown.stale.detail}", style="yellow")
        yield Text("to measure again: batchcal calibrate", style="yellow")
    if calibration.status in UNFINISHED:
        style = "yellow" if calibration.status == "unsettled" else "bold yellow"
        yield Text(unfinished(calibration), style=style)


def unfinished(calibration: Calibration) -> str:
    """Return the sentence about a status other than `complete`, with the next step."""
    text = f"{calibration.status}: {UNFINISHED[calibration.status]}"
    limit_s = calibration.options.time_limit_s
    if calibration.status != "unsettled" or calibration.wall_s < limit_s * OUT_OF_TIME:
        return text
    return f"{text}. To continue: the same command with --time-limit {2 * limit_s:.0f}s"


def _sizes(calibration: Calibration, finding: Finding) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_row("train", *_size(finding.train, "bold green"), f"limited by {limit_sentence(calibration, finding)}")
    if finding.eval is not None:
        table.add_row("eval", *_size(finding.eval, "bold"), f"limited by {limit_sentence(calibration, finding, 'eval')}")
    return table


def _size(capacity: Capacity, style: str) -> tuple[Text, str, str]:
    rate = f"{count(capacity.samples_per_s)} samples/s"
    return Text(count(capacity.batch), style=style), rate, format_bytes(capacity.peak_bytes)


class MemoryBar:
    """One line as wide as the limit: memory of others, the task at rest, the batch, spare memory, growth, the margin."""

    def __init__(self, calibration: Calibration, finding: Finding) -> None:
        self._calibration, self._finding = calibration, finding

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = memory_parts(self._calibration, self._finding)
        total = sum(size for _, size in parts)
        if total <= 0:
            return
        ascii_only = options.ascii_only
        fills = dict(zip(_PART_STYLES, "o=#.+/" if ascii_only else "░▓█·+/", strict=True))
        width = max(options.max_width - 4, 20)
        bar, key, done = Text("  "), Text("  "), 0.0
        for name, size in parts:
            start, done = round(done / total * width), done + size
            bar.append(fills[name] * (round(done / total * width) - start), _PART_STYLES[name])
            if size <= 0:
                continue
            text = f"{name} {format_bytes(size)}"
            if len(key.plain.rpartition("\n")[2]) + len(text) + 4 > options.max_width:
                key.append("\n  ")
            key.append(f"{fills[name]} ", _PART_STYLES[name])
            key.append(f"{text}  ")
        yield bar
        key.rstrip()
        yield key


_PART_STYLES: Final = dict(
    zip(
        ("other processes", "without a batch", "batch", "spare", "growth", "margin"),
        ["magenta", "cyan", "green", "dim", "blue", "yellow"],
        strict=True,
    )
)
"""Styles of all parts that `memory_parts` returns, in its order."""


def memory_parts(calibration: Calibration, finding: Finding) -> tuple[tuple[str, float], ...]:
    """Return the parts of the limit, bytes. Their sum is the limit."""
    budget = calibration.budget(finding.device)
    if budget is None:
        return ()
    peak = float(finding.train.peak_bytes)
    rest = min(max(finding.train_memory.base_bytes, 0.0), peak)
    usable = finding.usable_bytes(budget.budget_bytes)
    growth = float(budget.reserved_bytes + budget.budget_bytes - max(usable, peak))
    return (
        ("other processes", float(budget.others_bytes)),
        ("without a batch", rest),
        ("batch", peak - rest),
        ("spare", max(usable - peak, 0.0)),
        *((("growth", growth),) if growth > 0 else ()),
        ("margin", float(budget.margin_bytes)),
    )


class _Outcomes:
    """The probes in order. A narrow console gets fewer columns, but no truncated numbers."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._with_place = len({(probe.device, probe.allocator) for probe in calibration.measurements}) > 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - (_PLACE_WIDTH if self._with_place else 0)
        table = Table(box=None, pad_edge=True, header_style="dim", padding=(0, 1))
        table.add_column("#", justify="right", style="dim")
        table.add_column("phase", no_wrap=True)
        if self._with_place:
            table.add_column("setup", style="dim", overflow="ellipsis", no_wrap=True)
        table.add_column("batch", justify="right", no_wrap=True)
        if room >= _PREDICTED_FROM:
            table.add_column("predicted", justify="right", style="dim", no_wrap=True)
        table.add_column("peak", justify="right", no_wrap=True)
        if room >= _BAR_FROM:
            table.add_column("of budget", no_wrap=True)
        if room >= _RATE_FROM:
            table.add_column("samples/s", justify="right", no_wrap=True)
        table.add_column("outcome")
        for probe in self._calibration.measurements:
            table.add_row(*self._row(probe, room))
        yield table

    def _row(self, probe: Measurement, room: int) -> Iterator[RenderableType]:
        peak, style = peak_of(probe.outcome), TONES[tone(probe.outcome)]
        budget = self._calibration.budget(probe.device)
        peak_bytes = None if peak is None else peak.bytes_on(probe.device)
        yield str(probe.sequence)
        yield probe.phase
        if self._with_place:
            yield f"{probe.device} {probe.allocator}"
        yield f"{'eval ' if probe.mode == 'eval' else ''}{count(probe.batch)}"
        if room >= _PREDICTED_FROM:
            yield "" if probe.predicted_bytes is None else format_bytes(probe.predicted_bytes)
        yield "" if peak_bytes is None else format_bytes(peak_bytes)
        if room >= _BAR_FROM:
            yield "" if peak_bytes is None or budget is None else _Bar(peak_bytes / max(budget.budget_bytes, 1), style)
        if room >= _RATE_FROM:
            yield count(probe.outcome.samples_per_s) if probe.outcome.kind == "fits" else ""
        yield Text(short(probe.outcome), style=style)


class _Bar:
    """A share as a bar of eighths."""

    def __init__(self, share: float, style: str) -> None:
        self._share, self._style = share, style

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Width:
        return Width(_BAR_WIDTH, _BAR_WIDTH)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        filled = min(max(self._share, 0.0), 1.0) * _BAR_WIDTH
        full, eighths = int(filled), int(filled % 1 * 8)
        if options.ascii_only:
            yield Text("#" * round(filled) + "." * (_BAR_WIDTH - round(filled)), style=self._style)
            return
        text = "█" * full + ("" if not eighths else chr(0x2590 - eighths))
        yield Text.assemble((text, self._style), ("·" * (_BAR_WIDTH - len(text)), "dim"))


def remarks(shown: ShownCalibration) -> Iterator[RenderableType]:
    """Yield further remarks and the path."""
    calibration = shown.calibration
    texts = [*shown.notices, *calibration.notes, *(f"not finished: {undone.text}" for undone in calibration.undone)]
    if texts:
        yield Text("")
    for remark in texts:
        yield hanging("  - ", remark, style="dim")
    if shown.path is not None:
        yield Text("")
        yield Text(f"  {shown.path}", style="dim", overflow="fold")


def reasons(calibration: Calibration) -> Iterator[RenderableType]:
    """Yield each decision with its reason."""
    for question, reason in decisions(calibration):
        yield Text(f"  {question}", style="bold")
        yield hanging("    ", reason)


def hanging(indent: str, text: str, *, style: str = "") -> Table:
    """Return text with a hanging indent: further lines stand below the first."""
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True, style=style)
    grid.add_column(overflow="fold", style=style)
    grid.add_row(Text(indent), Text(text))
    return grid
