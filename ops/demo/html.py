"""One HTML file that says how a run went: no outside asset, readable without a server, light or dark."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 16, 34
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
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
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
    sheet_dark_png: bytes = b""
    """The same for a dark scheme; empty shows the other one there too."""
    sheet_note: str = ""
    tables: tuple[Table, ...] = ()


def render(page: SummaryPage) -> str:
    """The page as one HTML document; every text is escaped."""
    charts = ""
    if len(page.loss) > 1:
        note = "Loss of the swapped prediction. At ln K every prototype is as likely as any other."
        charts += _section("Loss against ln K", loss_chart(page.loss, page.ln_k), note)
    if page.usage:
        note = "Share of the latest images of which a prototype is the nearest, busiest first."
        charts += _section("Use of the prototypes", usage_chart(page.usage), note)
    sections = f'<div class="pair">{charts}</div>' if charts else ""
    if page.sheet_png:
        sections += _section("What the prototypes stand for", _sheet(page), page.sheet_note)
    sections += "".join(_section(table.title, _table(table), table.note) for table in page.tables)
    template = Template(resources.files("ops.demo").joinpath("summary.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(page.title),
        lead=html.escape(page.lead),
        figures="".join(_figure(figure) for figure in page.figures),
        sections=sections,
    )


def _sheet(page: SummaryPage) -> str:
    """The contact sheet in the reader's colour scheme; on a narrow screen it is scrolled, not shrunk."""
    dark = (
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(page.sheet_dark_png)}">'
        if page.sheet_dark_png
        else ""
    )
    image = f'<img alt="Contact sheet of prototypes" src="{_data(page.sheet_png)}">'
    return f"<picture>{dark}{image}</picture>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def loss_chart(points: Sequence[tuple[float, float]], ln_k: float) -> str:
    """An SVG line of (samples, loss) under a dashed line at ln K."""
    step = max(1, len(points) // _MOST_POINTS)
    shown = [*points[:-1:step], points[-1]]
    right = max(samples for samples, _ in shown) or 1.0
    losses = [loss for _, loss in shown]
    low = min(*losses, ln_k)
    high = max(*losses, ln_k)
    low, high = low - 0.06 * (high - low or 1.0), high + 0.06 * (high - low or 1.0)

    def place(samples: float, loss: float) -> tuple[float, float]:
        return _across(samples / right), _up((loss - low) / (high - low))

    curve = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in shown)
    _, line = place(0, ln_k)
    parts = [_rules()]
    for share in (0.0, 0.5, 1.0):
        parts.append(_label(_LEFT - 6, _up(share) + 4, f"{low + share * (high - low):.2f}", "end"))
    parts += [
        f'<polyline class="curve" points="{curve}"><title>loss</title></polyline>',
        f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{line:.1f}" y2="{line:.1f}"/>',
        _label(_WIDTH - _RIGHT, line + 15, f"ln K = {ln_k:.2f}: nothing learned", "end", "marked"),
        _label(_WIDTH - _RIGHT, _HEIGHT - 6, f"{right:,.0f} images", "end"),
        _label(_LEFT, _HEIGHT - 6, "0", "start"),
    ]
    return _svg("Loss over images seen", parts)


def usage_chart(usage: Sequence[float]) -> str:
    """SVG bars of each prototype's share, busiest first, with a dashed line where even use would be."""
    shares = sorted(usage, reverse=True)
    top = max(shares[0], 1 / len(shares)) * 1.08
    width = (_WIDTH - _LEFT - _RIGHT) / len(shares)
    parts = [_rules()]
    for number, share in enumerate(shares):
        x, y = _LEFT + number * width, _up(share / top)
        parts.append(
            f'<rect class="bar" x="{x:.2f}" y="{y:.2f}" width="{max(0.5, width * 0.82):.2f}" '
            f'height="{_up(0) - y:.2f}"><title>{share:.2%}</title></rect>'
        )
    even = _up(1 / len(shares) / top)
    parts += [
        f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{even:.1f}" y2="{even:.1f}"/>',
        _label(_WIDTH - _RIGHT, even - 6, f"even: {1 / len(shares):.1%}", "end", "marked"),
        _label(_LEFT - 6, _up(shares[0] / top) + 4, f"{shares[0]:.1%}", "end"),
        _label(_LEFT - 6, _up(0) + 4, "0", "end"),
        _label(_LEFT, _HEIGHT - 6, "busiest", "start"),
        _label(_WIDTH - _RIGHT, _HEIGHT - 6, f"{len(shares)} prototypes", "end"),
    ]
    return _svg("Use of the prototypes", parts)


def _across(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _up(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _rules() -> str:
    lines = []
    for share in (0.0, 0.5, 1.0):
        y = _up(share)
        lines.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return "".join(lines)


def _label(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


def _section(title: str, body: str, note: str) -> str:
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{body}{below}</section>"


def _figure(figure: Figure) -> str:
    note = f"<span>{html.escape(figure.note)}</span>" if figure.note else ""
    name, value = html.escape(figure.name), html.escape(figure.value)
    return f'<div class="figure"><span>{name}</span><b>{value}</b>{note}</div>'


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        line = ""
        for number, cell in enumerate(cells):
            css = ' class="number"' if number >= table.numbers_from else ""
            line += f"<{tag}{css}>{html.escape(cell)}</{tag}>"
        return f"<tr>{line}</tr>"

    head = row(table.header, "th") if table.header else ""
    return f"<table>{head}{''.join(row(cells, 'td') for cells in table.rows)}</table>"
