"""Which records a lane has, and in which order it reads them: pure functions of a few integers.

Slices. Record i of the whole stream (in commit order) would go to lane i mod V if records were dealt one by
one. Each commit gives every lane as many records as that deal would, but in one piece: lane l has the l-th of
V consecutive slices of each commit. So lanes are even to one record after every commit, whatever the sizes.

Order. A lane reads the records of its slices of a window (W commits, from a multiple of W on) in one
permutation over all of them, or else visits the commits of the window in an order of its own, and the records
of each slice in another. All are drawn from Philox-4x64 without any state:

    key     = (seed, tag << 32 | pass)     tag 1: commits of a window, 2: records of a slice, 3: of a window
    counter = (0, 0, lane, number)         number: of the window's first commit, or of the commit

The counter's first word counts the draws. The order of m things is the stable argsort of the first m 64-bit
words. Raw words rather than numpy's `permutation`, because numpy promises that the words never change and
does not promise it of the shuffling built on them.

More than 65,536 records of a lane in a window are not sorted: their permutation is computed at the places
that are asked for. It is a Feistel network over pairs (l, r) with l + a r = record, 0 <= l < a, 0 <= r < b,
where a = ceil(sqrt(m)) and b = ceil(m / a). Eight rounds add a word to one half, chosen by the other half:

    even rounds   l = (l + word[round, r]) mod a          odd rounds   r = (r + word[round, l]) mod b

with the first 8 max(a, b) words of the same generator as table [8, max(a, b)]. Results of m or more go
through the network again, until they are below m. Each step can be undone, so it is a permutation; the memory
is that of the table, 126 kB for 10^9 records over 64 lanes.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; numpy NEP 19 for the promise;
Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, for such networks and for walking the cycle.
"""

import math
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

WINDOW, SHARD = "window", "shard"
ORDERS = (WINDOW, SHARD)

WINDOW_TAG: Final = 1
RECORD_TAG: Final = 2
LANE_TAG: Final = 3
MOST_SORTED: Final = 1 << 16
"""Records of a lane in a window up to which their order is a sorted table; part of the order's definition."""
_ROUNDS: Final = 8
LARGEST_SEED: Final = 2**63 - 1


def slice_bounds(n: int, before: int, lanes: int, lane: int) -> tuple[int, int]:
    """First record of a lane's slice of a commit, and the one after its last.

    The n mod V slices that are one longer start at lane (before mod V).

    Args:
        n: records of the commit.
        before: records of all commits before it.
        lanes: V.
        lane: 0 .. V-1.
    """
    base, extra = divmod(n, lanes)
    first = before % lanes
    # Longer slices before this lane: of [first, first + extra), taken round the circle.
    longer = min(max(lane - first, 0), extra) + min(lane, max(first + extra - lanes, 0))
    start = lane * base + longer
    own = base + (1 if (lane - first) % lanes < extra else 0)
    return start, start + own


def lane_total(records: int, lanes: int, lane: int) -> int:
    """Records that the first `records` of a stream (whole commits) give to a lane."""
    return (records + lanes - 1 - lane) // lanes


def window_order(*, seed: int, pass_number: int, lane: int, first: int, count: int) -> NDArray[np.int64]:
    """The order in which a lane visits the `count` commits of the window that begins at commit `first`.

    Returns:
        int64 [count], a permutation of 0 .. count-1.
    """
    return _permutation(WINDOW_TAG, seed, pass_number, lane, first, count)


def record_order(*, seed: int, pass_number: int, lane: int, number: int, count: int) -> NDArray[np.int64]:
    """The order in which a lane reads the `count` records of its slice of commit `number`.

    Returns:
        int64 [count], a permutation of 0 .. count-1.
    """
    return _permutation(RECORD_TAG, seed, pass_number, lane, number, count)


class Order(Protocol):
    """A permutation of 0 .. count-1 that can be asked for any of its places."""

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """Entries start .. stop-1; int64. Both within 0 .. count."""
        ...


def lane_order(*, seed: int, pass_number: int, lane: int, first: int, count: int) -> Order:
    """The order in which a lane reads its `count` records of the window that begins at commit `first`."""
    bits = _bits(LANE_TAG, seed, pass_number, lane, first)
    return _Sorted(bits, count) if count <= MOST_SORTED else _Network(bits, count)


class _Sorted:
    """A table."""

    def __init__(self, bits: np.random.Philox, count: int) -> None:
        self._table = _sorted(bits, count).astype(np.uint16)

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """As `Order.at`."""
        return self._table[start:stop].astype(np.int64)


class _Network:
    """A Feistel network: the table of its rounds only."""

    def __init__(self, bits: np.random.Philox, count: int) -> None:
        self._count = count
        self._left = math.isqrt(count - 1) + 1
        self._right = -(-count // self._left)
        width = max(self._left, self._right)
        words = bits.random_raw(_ROUNDS * width).reshape(_ROUNDS, width)
        # What is added is needed modulo the half that it is added to.
        halves = np.array([self._left, self._right] * (_ROUNDS // 2), np.uint64)
        self._table = (words % halves[:, None]).astype(np.uint32)

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """As `Order.at`."""
        found = self._once(np.arange(start, stop, dtype=np.int64))
        while (outside := np.nonzero(found >= self._count)[0]).size:
            found[outside] = self._once(found[outside])
        return found

    def _once(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        right, left = np.divmod(records, self._left)
        for number, words in enumerate(self._table):
            if number % 2 == 0:
                left = (left + words[right]) % self._left
            else:
                right = (right + words[left]) % self._right
        found: NDArray[np.int64] = left + self._left * right
        return found


def _permutation(
    tag: int, seed: int, pass_number: int, lane: int, number: int, count: int
) -> NDArray[np.int64]:
    return _sorted(_bits(tag, seed, pass_number, lane, number), count)


def _bits(tag: int, seed: int, pass_number: int, lane: int, number: int) -> np.random.Philox:
    return np.random.Philox(
        key=np.array([seed, tag << 32 | pass_number], np.uint64),
        counter=np.array([0, 0, lane, number], np.uint64),
    )


def _sorted(bits: np.random.Philox, count: int) -> NDArray[np.int64]:
    if count < 2:
        return np.zeros(count, np.int64)
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)
