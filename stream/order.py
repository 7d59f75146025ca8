"""Which records a lane has, and in which order it reads them: pure functions of a few integers.

Slices. Record i of the whole stream (in commit order) would go to lane i mod V if records were dealt one by
one. Each commit gives every lane as many records as that deal would, but in one piece: lane l has the l-th of
V consecutive slices of each commit. So lanes are even to one record after every commit, whatever the sizes.

Order. A lane visits the commits of a window (W commits, from a multiple of W on) in an order of its own, and
the records of its slice in another. Both are drawn from Philox-4x64 without any state:

    key     = (seed, tag << 32 | pass)     tag 1: commits of a window, tag 2: records of a slice
    counter = (0, 0, lane, number)         number: of the window's first commit, or of the commit

The counter's first word counts the draws. The order of m things is the stable argsort of the first m 64-bit
words. Raw words rather than numpy's `permutation`, because numpy promises that the words never change and
does not promise it of the shuffling built on them.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; numpy NEP 19 for the promise.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

WINDOW_TAG: Final = 1
RECORD_TAG: Final = 2
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


def _permutation(
    tag: int, seed: int, pass_number: int, lane: int, number: int, count: int
) -> NDArray[np.int64]:
    if count < 2:
        return np.zeros(count, np.int64)
    bits = np.random.Philox(
        key=np.array([seed, tag << 32 | pass_number], np.uint64),
        counter=np.array([0, 0, lane, number], np.uint64),
    )
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)
