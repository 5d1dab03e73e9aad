"""A page as values, and its rendering. No script, font or picture from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from batchcal.cli.views.charts.plot import MarkKind, Plot
from batchcal.cli.views.charts.plot_svg import draw, legend

GENERATOR: Final = '<meta name="generator" content="batchcal">'
"""Mark of pages that batchcal wrote and may replace."""
WIDE: Final = 920
HALF: Final = 440
"""Widths of a chart, pixels. On a narrow screen each chart has the second, so that its text is readable."""
NARROW_HEIGHT: Final = 300


@dataclass(frozen=True)
class Line:
    text: str
    kind: str = ""
    """Class of the style sheet, such as `soft`."""


@dataclass(frozen=True)
class Card:
    """A result in large type."""

    name: str
    value: str
    lines: tuple[Line, ...]
    kind: str = "value"


@dataclass(frozen=True)
class Cell:
    text: str
    kind: str = ""
    share: float | None = None
    """Length of a bar before the text, from 0 to 1. None: no bar."""


@dataclass(frozen=True)
class Table:
    heads: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    chosen: int | None = None
    """Row that is highlighted."""

    @classmethod
    def of(
        cls, heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[str], chosen: int | None = None
    ) -> Table:
        """Return a table of texts. The columns `numbers` are aligned to the right."""
        kinds = ["n" if head in numbers else "" for head in heads]
        return cls(
            heads=tuple(map(Cell, heads, kinds)),
            rows=tuple(tuple(map(Cell, row, kinds)) for row in rows),
            chosen=chosen,
        )


@dataclass(frozen=True)
class Chart:
    wide: str
    """SVG."""
    narrow: str = ""
    """SVG for narrow screens. Empty: the other one has to do."""
    signs: tuple[tuple[MarkKind, str, str], ...] = ()
    """Kind, sign and meaning of the marks."""

    @classmethod
    def of(cls, plot: Plot, *, width: int = WIDE, height: int = 320) -> Chart:
        if width <= HALF:
            return cls(draw(plot, width=width, height=height), signs=legend(plot))
        return cls(
            wide=draw(plot, width=width, height=height, kind="wide"),
            narrow=draw(plot, width=HALF, height=min(height, NARROW_HEIGHT), kind="narrow"),
            signs=legend(plot),
        )


@dataclass(frozen=True)
class Part:
    """Part of a bar, or a bar of its own."""

    name: str
    text: str
    share: float
    kind: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    lines: tuple[Line, ...] = ()
    chart: Chart | None = None
    table: Table | None = None
    parts: tuple[Part, ...] = ()
    """Parts of one bar."""
    shares: tuple[Part, ...] = ()
    """Bars below each other."""
    answers: tuple[tuple[str, str], ...] = ()
    """Questions with their answers."""
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    title: str
    name: str
    badge: str
    good: bool
    """False: the badge is a warning."""
    about: tuple[str, ...]
    footer: str
    warnings: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    rows: tuple[tuple[Section, ...], ...] = ()
    """Sections. Those of one row are side by side if the screen is wide enough."""

    def html(self) -> str:
        """Return the complete document."""
        environment = Environment(
            loader=PackageLoader("batchcal.cli.views", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters["percent"] = percent
        return environment.get_template("page.html").render(page=self, generator=GENERATOR).lstrip()


def percent(share: float) -> str:
    """Return a share as a length of CSS."""
    return f"{share:.1%}"
