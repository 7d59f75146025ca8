"""Reads a Kafka topic lane by lane: a partition is a lane.

Each lane is cut into blocks of `window` messages, counted from where the lane begins (never by arithmetic on
offsets: transactions and compaction leave gaps). The messages of a block are read in an order drawn from
order.py with the offset that the block begins at. A block can be read once it is full, or the topic has its
end for this run, so the order never depends on when somebody looked. A position names the block by its first
and last offset and how many of its messages are used.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from stream.errors import StreamDamaged, StreamMismatch
from stream.lanes import LOST, Bounds, Position
from stream.order import record_order
from stream.source import Entry, Outlook
from stream.topic_address import TopicAddress, read_address
from stream.topic_client import look_at
from stream.topic_fetch import Gone, Message, TopicFetcher
from stream.topic_spec import OPEN, TopicSpec
from stream.topic_until import resolve

logger = logging.getLogger(__name__)


class _Block(NamedTuple):
    """Messages that are shuffled together; full, or the last ones of a lane that has its end."""

    base: int
    messages: list[Message]

    @property
    def end(self) -> int:
        """Its last offset."""
        return self.messages[-1].offset


class _Lost(NamedTuple):
    """Messages that are gone."""

    messages: int
    go_on: int
    """Offset at which the lane goes on."""


class TopicSource:
    """A topic being read (implements lanes.Source); one per process, not thread-safe.

    `refresh`, `outlook` and `read` may block while brokers are away (as long as `kafka.patience_s`), never
    on records that are still to come.
    """

    def __init__(self, spec: TopicSpec) -> None:
        self.lanes = spec.lanes
        self.address: TopicAddress = read_address(spec.url)
        self._spec = spec
        self._facts = look_at(self.address, spec.kafka)
        spec.check(self._facts)
        self._fetcher = TopicFetcher(self.address, spec.kafka)
        self._added = 0
        with contextlib.ExitStack() as opened:
            opened.callback(self._fetcher.close)
            self._starts = self._known(self._fetcher.starts)
            self._ends = self._known(self._fetcher.ends)
            self._bounds = spec.bounds or self._begin()
            opened.pop_all()

    def identity(self) -> dict[str, str]:
        """What a cursor is bound to: cluster and topic by their uuids."""
        return {"kind": "kafka", "cluster": self._facts.cluster, "uuid": self._facts.uuid}

    def bounds(self) -> Bounds:
        """First and end offset of each lane for a run that begins now, or began with these."""
        return self._bounds

    def refresh(self) -> bool:
        """Look for new messages and added partitions; True when there are more messages."""
        found = self._fetcher.ends(range(self.lanes))
        if found is None:
            return False
        before, self._ends = self._ends, self._by_lane(found)
        self._look_for_partitions()
        return before != self._ends

    def sealed(self) -> bool:
        """Whether every lane has its end."""
        return all(end != OPEN for _, end in self._bounds)

    def outlook(self, position: Position, pass_number: int) -> Outlook:
        """Unread messages of the lane in blocks that can be read, by their offsets: gaps count as messages.

        Raises:
            StreamMismatch: the position is not one of this topic with these lanes and this window.
            StreamDamaged: the topic ends before the position.
        """
        self._fits(position)
        stop, ended = self._stop(position.lane)
        if position.end >= 0:
            rest = self._block_size(position) - position.idx
            begin = position.end + 1
        else:
            rest, begin = 0, position.base
        beyond = max(stop - begin, 0)
        if not ended:
            beyond -= beyond % self._spec.window
        return Outlook(available=rest + beyond, ended=ended)

    def unread(self, positions: Iterable[Position], pass_number: int = 0) -> int:
        """Messages after these positions up to the end of the topic or the run, by their offsets."""
        return sum(self.behind(position) for position in positions)

    def behind(self, position: Position) -> int:
        """Messages of one lane after a position."""
        stop, _ = self._stop(position.lane)
        if position.end < 0:
            return max(stop - position.base, 0)
        return self._block_size(position) - position.idx + max(stop - position.end - 1, 0)

    def read(self, position: Position, pass_number: int) -> Iterator[tuple[Entry, Position]]:
        """Entries from `position` on, each with the position after it; ends where nothing more may be read.

        What is gone is one entry of reason `lost`, which stands for all of it, if `kafka.on_gap` says skip.

        Raises:
            StreamMismatch: as `outlook`.
            StreamDamaged: messages are gone, and `kafka.on_gap` says stop.
            StreamError: brokers are away for too long.
        """
        self._fits(position)
        lane, base, end, idx = position.lane, position.base, position.end, position.idx
        unit = position.unit
        while (found := self._block(lane, base, end, idx)) is not None:
            if isinstance(found, _Lost):
                base, end, idx = found.go_on, -1, 0
                after = Position(lane=lane, unit=unit, base=base, seq=position.seq)
                yield Entry(unit=lane, index=base, record=None, reason=LOST, count=found.messages), after
                continue
            messages = found.messages
            if idx > len(messages):
                raise self._misfit(position)
            order = record_order(
                seed=self._spec.seed, pass_number=pass_number, lane=lane, number=base, count=len(messages)
            ).tolist()
            unit_after = messages[-1].epoch
            for place in order[idx:]:
                idx += 1
                whole = idx == len(messages)
                after = Position(
                    lane=lane,
                    unit=max(unit_after if whole else unit, 0),
                    base=found.end + 1 if whole else base,
                    idx=0 if whole else idx,
                    seq=position.seq,
                    end=-1 if whole else found.end,
                )
                yield self._spec.entry(lane, messages[place]), after
            base, end, idx, unit = found.end + 1, -1, 0, max(unit_after, 0)

    def entry(self, unit: int, index: int) -> Entry:
        """Read one message again.

        Raises:
            StreamMismatch: no such partition.
            StreamDamaged: it is gone.
            StreamError: brokers are away for too long.
        """
        if not 0 <= unit < self.lanes:
            raise StreamMismatch(f"no partition {unit} among the {self.lanes} lanes of {self.address}")
        message = self._fetcher.message(unit, index)
        if message is None:
            raise StreamDamaged(
                f"offset {index} of partition {unit} of {self.address} was used before and is gone: keep "
                "messages longer (retention.ms of the topic) than the replay window lasts"
            )
        return self._spec.entry(unit, message)

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        self._fetcher.close()

    def _block(self, lane: int, base: int, end: int, idx: int) -> _Block | _Lost | None:
        """The block at `base`, what is gone there, or None when it is not full yet."""
        if base < self._starts[lane]:
            return self._lost(lane, base, end, idx)
        stop, ended = self._stop(lane)
        if end >= 0:
            stop, ended = end + 1, True
        if base >= stop or (not ended and stop - base < self._spec.window):
            return None
        try:
            messages, _ = self._fetcher.messages(lane, base, count=self._spec.window, stop=stop)
        except Gone:
            self._starts = self._known(self._fetcher.starts)
            if base < self._starts[lane]:
                return self._lost(lane, base, end, idx)
            raise self._cut_off(lane, base) from None
        if end >= 0 and (not messages or messages[-1].offset != end):
            raise StreamMismatch(
                f"partition {lane} of {self.address} from offset {base} is not what it was: a block ended at "
                f"{end}, now at {messages[-1].offset if messages else 'none'}"
            )
        if not messages or (not ended and len(messages) < self._spec.window):
            return None
        return _Block(base, messages)

    def _lost(self, lane: int, base: int, end: int, idx: int) -> _Lost:
        """What is gone from `base` on. A block of which some is gone is gone as a whole: its order is."""
        start = self._starts[lane]
        if end >= 0:
            position = Position(lane=lane, base=base, idx=idx, end=end)
            go_on = max(start, end + 1)
            count = self._block_size(position) - idx + go_on - end - 1
        else:
            go_on, count = start, start - base
        stop, ended = self._stop(lane)
        if ended and go_on > stop:  # the run's own end is gone too
            count, go_on = max(count - (go_on - stop), 0), stop
        if self._spec.kafka.on_gap == "stop":
            raise StreamDamaged(
                f"{count} messages of {self.address}, partition {lane}, offset {base} and on, are gone "
                f"before they were read: the partition begins at {start} now. Keep messages longer "
                "(retention.ms of the topic), or go on without them: --set kafka.on_gap=skip counts them"
            )
        logger.warning("%d messages of partition %d, from offset %d on, are gone: skipped", count, lane, base)
        return _Lost(count, go_on)

    def _stop(self, lane: int) -> tuple[int, bool]:
        """Offset up to which the lane may be read now, and whether it ends there."""
        end, bound = self._ends[lane], self._bounds[lane][1]
        return (end, False) if bound == OPEN or bound > end else (bound, True)

    def _block_size(self, position: Position) -> int:
        """Messages of the block that a position is in: all of them, but for the last block of a lane."""
        return min(self._spec.window, position.end + 1 - position.base)

    def _fits(self, position: Position) -> None:
        bound = self._bounds[position.lane][1] if 0 <= position.lane < self.lanes else 0
        place = max(position.base, position.end + 1)
        inside = position.idx == 0 if position.end < 0 else 0 < position.idx <= self._block_size(position)
        if not 0 <= position.lane < self.lanes or position.base < 0 or not inside:
            raise self._misfit(position)
        if place > self._ends[position.lane]:
            self.refresh()  # another process has seen more
            if place > self._ends[position.lane]:
                raise self._cut_off(position.lane, place)
        if bound != OPEN and place > max(bound, self._starts[position.lane]):
            raise self._misfit(position)

    def _cut_off(self, lane: int, offset: int) -> StreamDamaged:
        return StreamDamaged(
            f"partition {lane} of {self.address} ends at offset {self._ends[lane]}, before {offset}, where "
            "this run stands: its log was cut off (a leader without the newest messages was elected), or the "
            "topic is another one. Begin a new run, or go back to a checkpoint from before"
        )

    def _misfit(self, position: Position) -> StreamMismatch:
        return StreamMismatch(
            f"{position} is no place in {self.address}, read by {self.lanes} lanes in blocks of "
            f"{self._spec.window}: the cursor is of another topic, number of lanes or window"
        )

    def _begin(self) -> Bounds:
        ends = resolve(self._spec.until, self._fetcher, self._starts, self._ends)
        return tuple(zip(self._starts, ends, strict=True))

    def _look_for_partitions(self) -> None:
        """Say loudly that partitions were added: they are no lanes of this run, nobody would miss them."""
        added = self._fetcher.partitions() - self.lanes
        if added > self._added:
            self._added = added
            names = ", ".join(str(self.lanes + number) for number in range(added))
            logger.warning(
                "partitions %s of %s were added after this run began and are not read by it: records there "
                "need a new run with lanes=%d",
                names, self.address, self.lanes + added,
            )  # fmt: skip

    @property
    def added(self) -> tuple[int, ...]:
        """Partitions that were added after the run began; they are not read."""
        return tuple(range(self.lanes, self.lanes + self._added))

    def _known(self, ask: Callable[[range], dict[int, int] | None]) -> tuple[int, ...]:
        """Offsets by lane; asks again while brokers are away, until the fetcher has had enough."""
        while (found := ask(range(self.lanes))) is None:
            time.sleep(0.2)
        return self._by_lane(found)

    def _by_lane(self, found: dict[int, int]) -> tuple[int, ...]:
        return tuple(found[lane] for lane in range(self.lanes))
