"""A run as one self-contained HTML page. Light and dark."""

from __future__ import annotations

from html import escape
from typing import Final

from batchcal.cli.views.charts.plot import Plot
from batchcal.cli.views.charts.plot_svg import POINTS, draw
from batchcal.cli.views.html import document, table
from batchcal.cli.views.run import charts
from batchcal.cli.views.run.epochs import epochs_table
from batchcal.cli.views.run.words import SeenRun, about, summary, told, where
from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_seconds
from batchcal.train.report.run import Happening, LoggedEpoch, LoggedRecovery, LoggedResize, Run

_MOST_ROWS: Final = 200
"""Most rows of events, and of epochs. Of more, the last ones are shown."""
_WIDE: Final = 920
_HALF: Final = 440


def page(seen: SeenRun) -> str:
    """Return the complete document."""
    run = seen.run
    body = [
        *_header(seen),
        *_answers(run),
        *_wide("loss", charts.loss(run, POINTS)),
        *_wide("loss of each task", charts.task_losses(run, POINTS)),
        *_memory(run),
        *_side_by_side(
            ("samples/s", charts.throughput(run, POINTS)),
            ("largest micro-batch of a step", charts.sizes(run, POINTS)),
            ("predicted against measured memory", charts.predictions(run)),
            ("weights of the tasks", charts.task_weights(run, POINTS)),
            ("gradient norm", charts.gradient_norms(run, POINTS)),
            ("learning rate", charts.learning_rate(run, POINTS)),
        ),
        *_epochs(run),
        *_happenings(run),
        *_remarks(run),
        f"<footer>{escape(str(run.path))}{f' · batchcal {escape(run.latest.batchcal)}' if run.latest.batchcal else ''}</footer>",
    ]
    return document(f"{run.started.spec}: run", body, styles=[("batchcal.cli.views.run", "run.css")])


def _header(seen: SeenRun) -> list[str]:
    run = seen.run
    badge = f'<span class="badge{"" if seen.well else " stale"}">{escape(seen.state)}</span>'
    lines = [f'<p class="about">{escape(line)}</p>' for line in about(run)]
    odd = run.steps.not_finite("loss")
    if odd:
        lines.append(
            f'<p class="warn">the loss is no number from step {count(odd[0])} on, {count_of(len(odd), "step")} in all</p>'
        )
    return [f"<header><h1>{escape(run.started.spec)}</h1>{badge}</header>", *lines]


def _answers(run: Run) -> list[str]:
    """Return one card per result."""
    cards = [
        f'<div><h2>{escape(name)}</h2><div class="value">{escape(answer)}</div><p class="facts soft">{escape(besides)}</p></div>'
        for name, answer, besides in summary(run)
    ]
    return ['<section class="answers">', *cards, "</section>"] if cards else []


def _section(title: str, plot: Plot, *, width: int, height: int) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{draw(plot, width=width, height=height)}</section>"


def _wide(title: str, plot: Plot | None) -> list[str]:
    return [] if plot is None else [_section(title, plot, width=_WIDE, height=320)]


def _side_by_side(*wanted: tuple[str, Plot | None]) -> list[str]:
    """Return the existing charts, two in a row if the page is wide enough."""
    there = [(title, plot) for title, plot in wanted if plot is not None]
    if len(there) < 2:
        return [_section(title, plot, width=_WIDE, height=280) for title, plot in there]
    return ['<div class="pairs">', *(_section(title, plot, width=_HALF, height=300) for title, plot in there), "</div>"]


def _memory(run: Run) -> list[str]:
    plot = charts.memory(run, POINTS)
    if plot is None:
        return []
    drawn = draw(plot, width=_WIDE, height=360)
    signs = {"recovered": ("✕", "ran out of memory, and went on"), "smaller": ("▼", "smaller"), "larger": ("▲", "larger")}
    kinds = dict.fromkeys(mark.kind for mark in plot.marks)
    keys = "".join(f'<li><b class="{kind}">{signs[kind][0]}</b>{signs[kind][1]}</li>' for kind in kinds if kind in signs)
    key = f'<ul class="signs">{keys}</ul>' if keys else ""
    return [f"<section><h2>memory at the peak of each step</h2>\n{drawn}{key}</section>"]


def _epochs(run: Run) -> list[str]:
    if not run.epochs:
        return []
    heads, rows = epochs_table(run)
    more = f", the last {_MOST_ROWS} of {len(rows):,}" if len(rows) > _MOST_ROWS else ""
    return [f"<section><h2>epochs{more}</h2>", *table(heads, rows[-_MOST_ROWS:], numbers=set(heads)), "</section>"]


def _happenings(run: Run) -> list[str]:
    found: list[Happening] = [one for one in run.happenings if not isinstance(one, LoggedEpoch)]
    if not found:
        return []
    rows = []
    for one in found[-_MOST_ROWS:]:
        kind = "recovered" if isinstance(one, LoggedRecovery) else "resized" if isinstance(one, LoggedResize) else "soft"
        rows.append(
            f'<tr><td class="n soft">{format_seconds(one.at)}</td><td>{escape(where(one))}</td>'
            f'<td class="what {kind}">{escape(told(one))}</td></tr>'
        )
    more = f", the last {_MOST_ROWS} of {len(found):,}" if len(found) > _MOST_ROWS else ""
    return [
        f"<section><h2>what happened{more}</h2>",
        '<div class="scroll"><table><thead><tr><th class="n">after</th><th>where</th><th>what</th></tr></thead><tbody>',
        *rows,
        "</tbody></table></div></section>",
    ]


def _remarks(run: Run) -> list[str]:
    items = "".join(f"<li>{escape(text)}</li>" for text in run.remarks)
    return [f'<section><h2>good to know</h2><ul class="plain">{items}</ul></section>'] if items else []
