"""The summary page of a demo as one HTML file: no outside asset, readable without a server, light or dark.

Style and charts are those of the live page.
"""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

_MOST_POINTS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number that is shown large."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of text under a heading."""

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 9
    """Columns from this one on hold numbers and stand on the right."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryPage:
    """What the page shows, in its order; an empty part is left out."""

    title: str
    lead: str
    """What a reader should take away, in a sentence or two."""
    figures: tuple[Figure, ...]
    loss: tuple[tuple[float, float], ...]
    """(samples seen, loss) in order; the loss is in nats."""
    ln_k: float
    """Loss of a learner that has learned nothing, nats."""
    usage: tuple[float, ...]
    """Share of recent samples of each prototype; they sum to 1."""
    sheet_png: bytes
    """The contact sheet."""
    sheet_dark_png: bytes
    """The same for a dark scheme."""
    sheet_note: str = ""
    tables: tuple[Table, ...] = ()


def render(page: SummaryPage) -> str:
    """The page as one HTML document; every text is escaped."""
    charts = ""
    if len(page.loss) > 1:
        note = "Loss of the swapped prediction. At ln K every prototype is as likely as any other."
        charts += _section("Loss against ln K", _chart("chart-loss"), note)
    if page.usage:
        note = "Percent of the latest images of which a prototype is the nearest, busiest first."
        charts += _section("Use of the prototypes", _chart("chart-usage"), note)
    sections = f'<div class="pair">{charts}</div>' if charts else ""
    if page.sheet_png:
        sections += _section("What the prototypes stand for", _sheet(page), page.sheet_note)
    sections += "".join(_section(table.title, _table(table), table.note) for table in page.tables)
    static = resources.files("ops.live_page") / "static"
    return Template((resources.files("ops.demo") / "summary.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(page.title),
        lead=html.escape(page.lead),
        figures="".join(_figure(figure) for figure in page.figures),
        sections=sections,
        style=(static / "page.css").read_text(encoding="utf-8"),
        charts=(static / "charts.js").read_text(encoding="utf-8"),
        data=json.dumps({
            "loss": [*page.loss[: -1 : max(1, len(page.loss) // _MOST_POINTS)], *page.loss[-1:]],
            "ln_k": page.ln_k,
            "usage": sorted(page.usage, reverse=True),
        }),
    )  # fmt: skip


def _chart(name: str) -> str:
    return f'<div class="chart" id="{name}" tabindex="0" role="img"></div>'


def _sheet(page: SummaryPage) -> str:
    """The contact sheet in the reader's colour scheme."""
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
        for png in (page.sheet_png, page.sheet_dark_png)
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="Contact sheet of prototypes" src="{light}"></picture>'
    )


def _section(title: str, body: str, note: str) -> str:
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{html.escape(title)}</h2>{body}{below}</section>'


def _figure(figure: Figure) -> str:
    note = f'<div class="note">{html.escape(figure.note)}</div>' if figure.note else ""
    name, value = html.escape(figure.name), html.escape(figure.value)
    return f'<div class="tile"><div class="label">{name}</div><div class="value">{value}</div>{note}</div>'


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        line = ""
        for number, cell in enumerate(cells):
            css = ' class="number"' if number >= table.numbers_from else ""
            line += f"<{tag}{css}>{html.escape(cell)}</{tag}>"
        return f"<tr>{line}</tr>"

    head = row(table.header, "th") if table.header else ""
    return f"<table>{head}{''.join(row(cells, 'td') for cells in table.rows)}</table>"
