"""How far each lane is behind the end of the stream, in learning and in reading ahead."""

import time
from collections.abc import Iterable, Mapping

from stream.lanes import LaneLag, Position
from stream.source import Source


def lane_lags(
    source: Source,
    pass_number: int,
    *,
    trained: Iterable[Position],
    trained_newest: Mapping[int, float],
    fetched: Mapping[int, tuple[Position, float]],
    finished: bool,
) -> tuple[LaneLag, ...]:
    """The lag of some lanes; quick: no I/O.

    Args:
        source: this process's view of the stream.
        pass_number: which pass over it.
        trained: where learning stands, for each of the lanes.
        trained_newest: when the newest record learned from was put on the stream, by lane.
        fetched: where reading ahead stands, and when its newest record was put on the stream, by lane.
        finished: the last pass is done: nothing is behind.
    """
    positions = {position.lane: position for position in trained}
    now = time.time()
    found = []
    for lane, (ahead, newest) in fetched.items():
        unlearned = 0 if finished else source.unread((positions[lane],), pass_number)
        unread = 0 if finished else source.unread((ahead,), pass_number)
        found.append(
            LaneLag(
                lane=lane,
                trained_records=unlearned,
                trained_s=_behind(unlearned, trained_newest.get(lane, 0.0), now),
                fetched_records=unread,
                fetched_s=_behind(unread, newest, now),
            )
        )
    return tuple(found)


def _behind(records: int, newest: float, now: float) -> float | None:
    """Age of the newest record that a lane got to, seconds; 0 when it has all, None when it is not known."""
    if newest == 0.0:  # shards do not say, nor has a topic before its first record
        return None
    return max(now - newest, 0.0) if records else 0.0
