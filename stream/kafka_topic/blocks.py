"""Blocks of a topic's messages: where lanes begin and end, what is gone, and whether it is what it was.

What a partition no longer holds is told apart by where it is missing: before its first message (retention),
between messages (a cleaner, a damaged disk; control records of transactions are no messages and are not
missed), or below a position that proves to stand on another log.

A log is another one where a leader was elected without the newest messages and gave their offsets to others,
or where a topic was restored from a backup; it looks whole either way. So a position holds a digest of the
message before it, or of the block that it is in, and reading on compares.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from stream.errors import StreamDamaged, StreamMismatch
from stream.kafka_topic.address import OPEN, TopicAddress, resolve
from stream.kafka_topic.fetch import Gone, Message, TopicFetcher
from stream.lanes import Bounds, Position

NONE = 0


class Told(Protocol):
    """What of a message counts."""

    @property
    def offset(self) -> int:
        """Where it stands."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its bytes."""
        ...

    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """Of these the digest of the image, so that it need not be made again."""
        ...


def proof_of(messages: Iterable[Told]) -> int:
    """A number that stands for these messages at these offsets, 1 .. 2^63-1.

    Not of when they were sent: the same image that was sent again to the same place is the same record.
    """
    digest = hashlib.sha256()
    for message in messages:
        known = next((value for name, value in message.headers if name == "sha256" and value), None)
        content = known or hashlib.sha256(message.value or b"").digest()
        digest.update(f"{message.offset} {len(content)} ".encode() + content)
    return int.from_bytes(digest.digest()[:8], "big") >> 1 or 1


logger = logging.getLogger(__name__)


class Block(NamedTuple):
    """Messages that are shuffled together; full, or the last ones of a lane that has its end."""

    base: int
    messages: list[Message]
    proof: int
    """Of all its messages."""

    @property
    def end(self) -> int:
        """Its last offset."""
        return self.messages[-1].offset

    @property
    def gone(self) -> int:
        """Messages that are missing from it, or right before it."""
        return sum(message.gone for message in self.messages)


class Lost(NamedTuple):
    """Messages that are gone."""

    messages: int
    go_on: int
    """Offset at which the lane goes on."""


class TopicBlocks:
    """The blocks of the partitions of one topic; one per process, not thread-safe.

    Methods may block while brokers are away (as long as `kafka.patience_s`) and then raise StreamError.
    """

    def __init__(
        self,
        address: TopicAddress,
        fetcher: TopicFetcher,
        *,
        lanes: int,
        window: int,
        bounds: Bounds,
        until: str,
        stop_at_gaps: bool,
    ) -> None:
        self._address, self._fetcher = address, fetcher
        self._lanes, self._window, self._stop_at_gaps = lanes, window, stop_at_gaps
        self._starts = self._known(fetcher.starts)
        self.ends = self._known(fetcher.ends)
        """Offset after the last message of each lane, as of the last look."""
        self.bounds: Bounds = bounds or tuple(
            zip(self._starts, resolve(until, fetcher, self._starts, self.ends), strict=True)
        )
        """First and end offset of each lane for this run; an end of -1 is none."""
        self._read: dict[int, tuple[int, int]] = {}
        """By lane: where the last block ended that was read here, and the proof of its last message."""

    def refresh(self) -> bool:
        """Look for new messages; True when there are more. Does not wait for brokers that are away."""
        found = self._fetcher.ends(range(self._lanes))
        if found is None:
            return False
        before, self.ends = self.ends, self._by_lane(found)
        return before != self.ends

    def begin(self, lane: int) -> int:
        """First offset that the lane still has, as of the last look."""
        return self._starts[lane]

    def stop(self, lane: int) -> tuple[int, bool]:
        """Offset up to which the lane may be read now, and whether it ends there."""
        end, bound = self.ends[lane], self.bounds[lane][1]
        return (end, False) if bound == OPEN or bound > end else (bound, True)

    def size(self, position: Position) -> int:
        """Messages of the block that a position is in; in the last one of a lane those missing count too."""
        return min(self._window, position.end + 1 - position.base)

    def at(self, position: Position) -> Block | Lost | None:
        """The block at a position, what is gone there, or None when it is not full yet.

        Raises:
            StreamDamaged: messages are gone, and `kafka.on_gap` says stop; or the log was written again.
        """
        lane, base = position.lane, position.base
        if base < self._starts[lane]:
            return self._lost_before(position)
        stop, ended = self.stop(lane)
        if position.end >= 0:
            stop, ended = position.end + 1, True
        if base >= stop or (not ended and stop - base < self._window):
            return None
        try:
            messages = self._messages(position, stop)
        except Gone:
            self._look_again()
            if base < self._starts[lane]:
                return self._lost_before(position)
            raise self.cut_off(lane, base) from None
        if position.end >= 0:
            return self._again(position, messages)
        if not messages or (not ended and len(messages) < self._window):
            return None
        block = Block(base, messages, proof_of(messages))
        if block.gone and self._stop_at_gaps:
            raise self._hole(lane, block)
        self._read[lane] = (block.end + 1, proof_of(messages[-1:]))
        return block

    def cut_off(self, lane: int, offset: int) -> StreamDamaged:
        """The error for a log that ends before a position, or is another one there."""
        return StreamDamaged(
            f"partition {lane} of {self._address}, which ends at offset {self.ends[lane]} now, was cut off "
            f"or rewritten before offset {offset}, where this run stands (a leader without the newest "
            "messages was elected, it comes from a backup, or the topic was created again). Begin a new run, "
            "or go back to a checkpoint from before"
        )

    def _messages(self, position: Position, stop: int) -> list[Message]:
        """Messages from a position on, up to a block; with them the one before is compared, if it is new."""
        lane, base, count = position.lane, position.base, self._window
        proof = position.proof if position.end < 0 else NONE
        if proof == NONE or base <= self._starts[lane] or self._read.get(lane) == (base, proof):
            return self._fetcher.messages(lane, base, count=count, stop=stop)[0]
        try:
            found, _ = self._fetcher.messages(lane, base - 1, count=count + 1, stop=stop)
        except Gone:  # the one before alone may be gone
            self._look_again()
            if base != self._starts[lane]:
                raise
            return self._fetcher.messages(lane, base, count=count, stop=stop)[0]
        if not found or found[0].offset >= base:  # a cleaner took it away, and it was used before that
            return self._fetcher.messages(lane, base, count=count, stop=stop)[0]
        if proof_of(found[:1]) != proof:
            raise self.cut_off(lane, base)
        return found[1:]

    def _again(self, position: Position, messages: list[Message]) -> Block | Lost:
        """A block that was begun before."""
        lane, size = position.lane, self.size(position)
        block = Block(position.base, messages, proof_of(messages))
        if messages and block.end == position.end and position.proof in (NONE, block.proof):
            self._read[lane] = (block.end + 1, proof_of(messages[-1:]))
            return block
        if len(messages) == size or self.ends[lane] <= position.end:
            raise self.cut_off(lane, position.base)
        return self._lost(position, size - position.idx, position.end + 1, "messages of a block are gone")

    def _lost_before(self, position: Position) -> Lost:
        """What is gone with the beginning of the log."""
        lane, base, end = position.lane, position.base, position.end
        start = self._starts[lane]
        if end >= 0:
            go_on = max(start, end + 1)
            count = self.size(position) - position.idx + go_on - end - 1
        else:
            go_on, count = start, start - base
        stop, ended = self.stop(lane)
        if ended and go_on > stop:  # the run's own end is gone too
            count, go_on = max(count - (go_on - stop), 0), stop
        return self._lost(position, count, go_on, f"the partition begins at {start} now")

    def _lost(self, position: Position, count: int, go_on: int, how: str) -> Lost:
        """A block of which some is gone is gone as a whole: its order is."""
        lane, base = position.lane, position.base
        if self._stop_at_gaps:
            raise StreamDamaged(
                f"{count} messages of {self._address}, partition {lane}, offset {base} and on, are gone "
                f"before they were read: {how}. Keep messages longer (retention.ms of the topic), or go on "
                "without them: --set kafka.on_gap=skip counts them"
            )
        logger.warning("%d messages of partition %d, from offset %d on, are gone: skipped", count, lane, base)
        return Lost(count, go_on)

    def _hole(self, lane: int, block: Block) -> StreamDamaged:
        after = next(message for message in block.messages if message.gone)
        return StreamDamaged(
            f"{block.gone} messages of {self._address}, partition {lane}, are gone from between others, the "
            f"first of them at offset {after.offset - after.gone} and before {after.offset}; no transaction "
            "accounts for it (was the topic compacted, or a disk damaged?). Go on without them: --set "
            "kafka.on_gap=skip counts them"
        )

    def _look_again(self) -> None:
        self._starts = self._known(self._fetcher.starts)
        self.ends = self._known(self._fetcher.ends)

    def _known(self, ask: Callable[[range], dict[int, int] | None]) -> tuple[int, ...]:
        """Offsets by lane; asks again while brokers are away, until the fetcher has had enough."""
        while (found := ask(range(self._lanes))) is None:
            time.sleep(0.2)
        return self._by_lane(found)

    def _by_lane(self, found: dict[int, int]) -> tuple[int, ...]:
        return tuple(found[lane] for lane in range(self._lanes))


def mismatch(address: TopicAddress, position: Position, *, lanes: int, window: int) -> StreamMismatch:
    """The error for a position that is none of this reading of a topic."""
    return StreamMismatch(
        f"{position} is no place in {address}, read by {lanes} lanes in blocks of {window}: the "
        "cursor is of another topic, number of lanes or window"
    )
