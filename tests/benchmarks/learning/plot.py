"""Curves of accuracy against processor seconds as SVG, without a plotting library."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 34, 40
_STEPS = (1, 2, 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a plot."""

    label: str
    colour: str
    points: tuple[tuple[float, float], ...]
    """Processor seconds and percent, at least one."""
    flat: bool = False
    """A score that stays what it is from its first point on."""


def panels(title: str, plots: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Plots side by side with the same axes, as one SVG document; seconds have a logarithmic scale."""
    curves = [curve for _, some in plots for curve in some]
    seconds = [max(x, 0.1) for curve in curves for x, _ in curve.points]
    scores = [y for curve in curves for _, y in curve.points]
    axes = _Axes(
        math.log10(min(seconds)) - 0.05, math.log10(max(seconds)) + 0.1, min(scores) - 2, max(scores) + 2
    )
    legend = list(dict.fromkeys((curve.label, curve.colour) for curve in curves))
    width, height = WIDTH * len(plots), HEIGHT + 18 * math.ceil(len(legend) / 3) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="16" font-size="14">{escape(title)}</text>',
    ]
    for place, (name, some) in enumerate(plots):
        lines.append(f'<g transform="translate({place * WIDTH},14)">')
        lines += [*_frame(axes, name), *(line for curve in some for line in _drawn(axes, curve)), "</g>"]
    for place, (label, colour) in enumerate(legend):
        x, y = _LEFT + 200 * (place % 3), HEIGHT + 30 + 18 * (place // 3)
        lines.append(
            f'<line x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>'
        )
        lines.append(f'<text x="{x + 28}" y="{y}">{escape(label)}</text>')
    return "\n".join([*lines, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Axes:
    left: float
    right: float
    low: float
    high: float

    def x(self, seconds: float) -> float:
        share = (math.log10(max(seconds, 0.1)) - self.left) / (self.right - self.left)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, percent: float) -> float:
        share = (percent - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _frame(axes: _Axes, name: str) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    yield f'<text x="{_LEFT}" y="{_TOP - 8}">{escape(name)}</text>'
    for percent in _ticks(axes.low, axes.high):
        y = axes.y(percent)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{percent:g} %</text>'
    for power in range(math.floor(axes.left), math.ceil(axes.right) + 1):
        for step in _STEPS:
            seconds = step * 10.0**power
            if axes.left <= math.log10(seconds) <= axes.right:
                x = axes.x(seconds)
                yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eee"/>'
                yield f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{seconds:g}</text>'
    size = f'width="{right - _LEFT}" height="{bottom - _TOP}"'
    yield f'<rect x="{_LEFT}" y="{_TOP}" {size} fill="none" stroke="#888"/>'
    yield f'<text x="{(_LEFT + right) / 2}" y="{bottom + 30}" text-anchor="middle">processor seconds</text>'


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers, five to ten of them."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (*_STEPS, 10) if step * power >= rough)
    tick = math.ceil(low / step) * step
    while tick <= high:
        yield round(tick, 6)
        tick += step


def _drawn(axes: _Axes, curve: Curve) -> Iterator[str]:
    points = list(curve.points)
    if curve.flat:
        points.append((10**axes.right, points[-1][1]))
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 3"' if curve.flat else ""
    yield f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="1.6"{dash}/>'
    for x, y in curve.points:
        yield f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.4" fill="{curve.colour}"/>'
