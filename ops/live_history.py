"""Figures over the length of a run in a fixed number of points: the longer the run, the wider each point."""

from collections.abc import Mapping
from typing import Any

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

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one step in; what is missing or None is a gap."""
        point = {name: entry.get(name) for name in COLUMNS}
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
