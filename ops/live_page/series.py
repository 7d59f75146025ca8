"""A series over the length of a run in bounded memory: the longer the run, the more each point stands for."""

from collections.abc import Callable
from typing import Generic, TypeVar

Point = TypeVar("Point")


class Series(Generic[Point]):
    """So many points at most; then neighbours become one, and each new point takes twice as many entries.

    Not thread-safe: its owner holds a lock.

    Args:
        most: points at most, at least 2.
        merge: an earlier and a later point as one; each comes with the number of entries that it stands for.
    """

    def __init__(self, most: int, merge: Callable[[Point, int, Point, int], Point]) -> None:
        if most < 2:
            raise ValueError(f"a series needs at least 2 points, got {most}")
        self.points: list[Point] = []
        self.stride = 1
        """Entries that a point stands for when it is whole: all are but the last one."""
        self._most, self._merge = most, merge
        self._last = 0  # entries in the last point

    def add(self, entry: Point) -> None:
        """Take one entry in."""
        if len(self.points) >= self._most and self._last >= self.stride:
            self._halve()
        if self.points and self._last < self.stride:
            self.points[-1] = self._merge(self.points[-1], self._last, entry, 1)
            self._last += 1
        else:
            self.points.append(entry)
            self._last = 1

    def keep(self, points: list[Point], stride: int) -> None:
        """Go on from these points instead; all of them count as whole."""
        self.points, self.stride, self._last = points, stride, stride

    def _halve(self) -> None:
        even = len(self.points) // 2 * 2
        pairs = zip(self.points[:even:2], self.points[1:even:2], strict=True)
        merged = [self._merge(one, self.stride, other, self.stride) for one, other in pairs]
        if len(self.points) == even:
            self._last = 2 * self.stride
        self.points = merged + self.points[even:]
        self.stride *= 2
