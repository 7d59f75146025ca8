"""How a lane goes through the records of one window: in one permutation of all, or shard by shard.

Where a lane stands in a window are two integers of its position, `base` and `idx`:

    order = window   base 0, idx: records of the lane's permutation of the window that are done
    order = shard    base: slices of the window that are done, idx: records of the current slice that are done

A base of as many as the window has commits says that all of it is done, in both.

The k-th record of a lane, over the whole stream, lies in the commit that holds record k V + lane of the
stream, since lanes get as many records as in a deal one by one. So the commit of a record is found by
bisection, and no table of a window's records is needed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stream.order import Order, lane_order, lane_total, record_order, slice_bounds, window_order
from stream.shards.manifest import Manifest

_KEPT_WINDOWS = 4
"""Windows of each lane whose visits to slices are kept in memory."""
_KEPT_ORDERS = 2
"""Permutations of each lane that are kept in memory; one of 16 million records of a lane has 128 kB."""
_LEAST, _MOST = 16, 1024
"""Places of a permutation that are looked up at once; a chunk may be a few records only."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window as one lane reads it in one pass."""

    lane: int
    pass_number: int
    first: int
    """Number of its first commit."""
    count: int
    """Commits that it has; >= 1."""


class Place(NamedTuple):
    """One record of a lane, and where the lane stands after it."""

    number: int
    """Of the commit."""
    record: int
    """In the commit."""
    base: int
    idx: int


class Walk(Protocol):
    """An order of the records of a window."""

    def done(self, window: Window, base: int, idx: int) -> int | None:
        """Records of the window before a place of it; None when there is no such place."""
        ...

    def pruned(self, window: Window, base: int, idx: int, floor: int) -> int:
        """Records from a place on that lie in commits below `floor`."""
        ...

    def places(self, window: Window, base: int, idx: int) -> Iterator[Place]:
        """Records from a place on, to the end of the window."""
        ...


class WindowWalk:
    """Goes through all records of a lane in a window in one permutation."""

    def __init__(self, manifest: Manifest, *, lanes: int, seed: int) -> None:
        self._manifest, self._lanes, self._seed = manifest, lanes, seed
        self._orders: OrderedDict[Window, Order] = OrderedDict()

    def done(self, window: Window, base: int, idx: int) -> int | None:
        """As `Walk.done`."""
        size = self._size(window, window.count)
        if base == window.count and idx == 0:
            return size
        return idx if base == 0 and 0 <= idx <= size else None

    def pruned(self, window: Window, base: int, idx: int, floor: int) -> int:
        """As `Walk.pruned`; computes the whole permutation when only a part of the window is pruned."""
        size = self._size(window, window.count)
        gone = self._size(window, max(0, min(floor - window.first, window.count)))
        if base == window.count or gone == 0:
            return 0
        if gone == size:
            return size - idx
        order = self._order(window)
        # The records of a lane in a window are numbered in the order of commits.
        return sum(
            int((order.at(at, min(at + (1 << 16), size)) < gone).sum()) for at in range(idx, size, 1 << 16)
        )

    def places(self, window: Window, base: int, idx: int) -> Iterator[Place]:
        """As `Walk.places`."""
        size = 0 if base == window.count else self._size(window, window.count)
        before, block = self._total(window.first, window.lane), _LEAST
        while idx < size:
            stop = min(idx + block, size)
            own = before + self._order(window).at(idx, stop)
            commits = self._manifest.holding(own * self._lanes + window.lane)
            for number, at in zip(commits.tolist(), own.tolist(), strict=True):
                n, of_all = self._manifest.n(number), self._manifest.before(number)
                start, _ = slice_bounds(n, of_all, self._lanes, window.lane)
                record = start + at - lane_total(of_all, self._lanes, window.lane)
                idx += 1
                yield Place(number, record, *((0, idx) if idx < size else (window.count, 0)))
            block = min(2 * block, _MOST)

    def _order(self, window: Window) -> Order:
        order = self._orders.get(window)
        if order is None:
            lane, pass_number, first = window.lane, window.pass_number, window.first
            order = self._orders[window] = lane_order(
                seed=self._seed,
                pass_number=pass_number,
                lane=lane,
                first=first,
                count=self._size(window, window.count),
            )
            if len(self._orders) > _KEPT_ORDERS * self._lanes:
                self._orders.popitem(last=False)
        self._orders.move_to_end(window)
        return order

    def _size(self, window: Window, commits: int) -> int:
        """Records of the lane in the first commits of a window."""
        return self._total(window.first + commits, window.lane) - self._total(window.first, window.lane)

    def _total(self, number: int, lane: int) -> int:
        return lane_total(self._manifest.before(number), self._lanes, lane)


class _Visit(NamedTuple):
    """A lane's slice of one commit."""

    number: int
    """Of the commit."""
    start: int
    """First record."""
    size: int
    """Records."""


class ShardWalk:
    """Goes through the slices of a window one after the other, each in an order of its own."""

    def __init__(self, manifest: Manifest, *, lanes: int, seed: int) -> None:
        self._manifest, self._lanes, self._seed = manifest, lanes, seed
        self._windows: dict[Window, list[_Visit]] = {}

    def done(self, window: Window, base: int, idx: int) -> int | None:
        """As `Walk.done`."""
        if not 0 <= base <= window.count or idx < 0:
            return None
        visits = self._visits(window)
        if idx > (visits[base].size if base < window.count else 0):
            return None
        return sum(visit.size for visit in visits[:base]) + idx

    def pruned(self, window: Window, base: int, idx: int, floor: int) -> int:
        """As `Walk.pruned`."""
        visits = self._visits(window)[base:]
        missed = sum(visit.size for visit in visits if visit.number < floor)
        if visits and visits[0].number < floor:
            missed -= min(idx, visits[0].size)
        return missed

    def places(self, window: Window, base: int, idx: int) -> Iterator[Place]:
        """As `Walk.places`."""
        for number, start, size in self._visits(window)[base:]:
            order = record_order(
                seed=self._seed,
                pass_number=window.pass_number,
                lane=window.lane,
                number=number,
                count=size,
            )
            base += 1
            for at, record in enumerate(order[idx:].tolist(), idx + 1):
                yield Place(number, start + record, *((base - 1, at) if at < size else (base, 0)))
            idx = 0

    def _visits(self, window: Window) -> list[_Visit]:
        """The lane's slices of a window, in its order."""
        visits = self._windows.get(window)
        if visits is None:
            lane, pass_number, first, count = window.lane, window.pass_number, window.first, window.count
            order = window_order(
                seed=self._seed, pass_number=pass_number, lane=lane, first=first, count=count
            )
            visits = []
            for number in (first + order).tolist():
                n, before = self._manifest.n(number), self._manifest.before(number)
                start, stop = slice_bounds(n, before, self._lanes, lane)
                visits.append(_Visit(number, start, stop - start))
            if len(self._windows) >= _KEPT_WINDOWS * self._lanes:
                self._windows.clear()
            self._windows[window] = visits
        return visits
