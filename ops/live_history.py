"""Figures over the length of a run in a fixed number of points: the longer the run, the wider each point."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ops.history import EDGE, edge

POINTS = 480
"""Most points kept; when they are full, neighbours are merged and each new point takes twice as many
steps."""

COLUMNS = (
    "samples", "time", "loss", "loss_over_ln_k", "rate", "usage_perplexity", "dead_prototypes", "lag",
    "learning_rate", "feature_std_ratio", "view_agreement",
)  # fmt: skip
"""What is kept of each point; samples and time are of its end, the others are means over it."""

ENDS = {"samples", "time"}


class LiveHistory:
    """A bounded history; not thread-safe, its owner holds a lock."""

    def __init__(self, points: int = POINTS) -> None:
        if points < 4:
            raise ValueError(f"a history needs at least 4 points, got {points}")
        self._most = points
        self._points: list[dict[str, float | None]] = []
        self._weights: list[int] = []
        self._stride = 1
        self._entries = 0
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=EDGE)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one step in; what is missing or None is a gap."""
        point = {name: entry.get(name) for name in COLUMNS}
        self._agreement(entry.get("view_agreement"))
        if self._weights and self._weights[-1] < self._stride:
            self._points[-1] = _merged(self._points[-1], self._weights[-1], point, 1)
            self._weights[-1] += 1
            return
        if len(self._points) >= self._most:
            self._halve()
        self._points.append(point)
        self._weights.append(1)

    def columns(self) -> dict[str, list[float | None]]:
        """One list for each of COLUMNS, oldest first."""
        return {name: [point[name] for point in self._points] for name in COLUMNS}

    def agreement(self) -> dict[str, float | None]:
        """Mean agreement of views over the first steps and over the latest; None before there are any.

        They are kept apart: the first point of a long run is a mean over many steps.
        """
        count = edge(self._entries)
        return {
            "start_view_agreement": _mean(self._first[:count]),
            "late_view_agreement": _mean(list(self._last)[-count:]),
        }

    def _agreement(self, value: float | None) -> None:
        if value is None:
            return
        self._entries += 1
        self._last.append(value)
        if len(self._first) < EDGE:
            self._first.append(value)

    def _halve(self) -> None:
        pairs = range(0, len(self._points) - 1, 2)
        tail = len(self._points) % 2
        points = [
            _merged(self._points[i], self._weights[i], self._points[i + 1], self._weights[i + 1])
            for i in pairs
        ]
        weights = [self._weights[i] + self._weights[i + 1] for i in pairs]
        self._points = points + (self._points[-1:] if tail else [])
        self._weights = weights + (self._weights[-1:] if tail else [])
        self._stride *= 2


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _merged(
    one: Mapping[str, float | None], weight: int, other: Mapping[str, float | None], added: int
) -> dict[str, float | None]:
    """Both as one point: ends of the later, means of the rest; a gap takes the other's value."""
    merged: dict[str, float | None] = {}
    for name in COLUMNS:
        a, b = one[name], other[name]
        if name in ENDS or a is None or b is None:
            merged[name] = a if b is None else b
        else:
            merged[name] = (a * weight + b * added) / (weight + added)
    return merged
