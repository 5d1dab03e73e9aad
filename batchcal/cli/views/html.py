"""Parts of every page: the document, tables. No script, font or picture from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from importlib.resources import files

GENERATOR = '<meta name="generator" content="batchcal">'
"""Mark of pages that batchcal wrote and may replace."""


def document(title: str, body: Iterable[str], *, styles: Sequence[tuple[str, str]] = ()) -> str:
    """Return the complete page, including its style sheets. `styles` are further ones, as package and file."""
    sheets = [
        files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in (("batchcal.cli.views", "page.css"), *styles)
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            GENERATOR,
            f"<title>{escape(title)}</title>",
            f"<style>\n{''.join(sheets)}</style></head>",
            "<body><main>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str], chosen: int | None = None
) -> list[str]:
    """Return a table of escaped text. The columns `numbers` are aligned to the right, the row `chosen` is highlighted."""
    kinds = ["n" if name in numbers else "" for name in heads]
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(heads, kinds, strict=True))
    lines = [
        "<tr>"
        + "".join(
            f'<td class="{kind}{" chosen" if place == chosen else ""}">{escape(cell)}</td>'
            for cell, kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for place, row in enumerate(rows)
    ]
    return [f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>', *lines, "</tbody></table></div>"]
