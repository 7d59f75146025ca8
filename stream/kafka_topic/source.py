"""Reads a Kafka topic lane by lane: a partition is a lane.

Each lane is cut into blocks of `window` messages, counted from where the lane begins (never by arithmetic on
offsets: transactions and compaction leave gaps). The messages of a block are read in an order drawn from
stream/order.py with the offset that the block begins at. A block can be read once it is full, or the topic
has its end for this run, so the order never depends on when a reader looked. A position names the block by
its first and last offset and how many of its messages are used.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from stream.config import KafkaConfig
from stream.errors import BadRecord, StreamDamaged, StreamMismatch
from stream.kafka_topic.address import OPEN, TopicAddress, read_address
from stream.kafka_topic.blocks import NONE, Block, Lost, TopicBlocks, mismatch, proof_of
from stream.kafka_topic.client import TopicFacts, look_at
from stream.kafka_topic.fetch import Message, TopicFetcher
from stream.kafka_topic.message import decode_message
from stream.lanes import LOST, Bounds, Position
from stream.order import LARGEST_SEED, record_order
from stream.source import Availability, Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicSpec:
    """Where a topic is and how it is read; small and picklable, without secrets (a source.SourceSpec)."""

    url: str
    """kafka://HOST:PORT/TOPIC."""
    lanes: int
    """V, the number of partitions when the run began; >= 1."""
    window: int
    """Messages of a block, which are shuffled; >= 1. 1 gives the least delay."""
    seed: int
    """Of the order; 0 .. 2^63-1."""
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    until: str = ""
    """Where the topic ends for a run that begins now: now, an offset or a time; empty = it stays open."""
    bounds: Bounds = ()
    """First and end offset of each lane, once they are known; an end of -1 is none."""
    verify: bool = True
    """Compare the SHA-256 of each image with what its message states."""
    max_record_bytes: int = 128 * 1024 * 1024
    """Larger images are skipped with reason too_large; >= 1."""

    def __post_init__(self) -> None:
        for name in ("lanes", "window", "max_record_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be in 0..2^63-1, got {self.seed}")
        if self.bounds and len(self.bounds) != self.lanes:
            raise ValueError(f"{self.lanes} lanes need as many bounds, got {len(self.bounds)}")
        read_address(self.url)

    def open(self) -> "TopicSource":
        """Open the topic in this process. Raises StreamNotFound, StreamMismatch, StreamError."""
        return TopicSource(self)

    def check(self, facts: TopicFacts) -> None:
        """Refuse a topic that cannot be read as these lanes. Raises StreamMismatch, StreamDamaged."""
        lanes, found = self.lanes, facts.partitions
        if found < lanes or (found > lanes and not self.bounds):
            raise StreamMismatch(
                f"{self.url} has {found} partitions, and a partition is a lane, but lanes is {lanes}: "
                f"give --set lanes={found}, and a batch that is a multiple of it"
            )
        if facts.compacted and self.kafka.on_gap == "stop":
            raise StreamDamaged(
                f"{self.url} is compacted (cleanup.policy={facts.settings['cleanup.policy']}): messages "
                "leave its middle before they are read. Set cleanup.policy=delete, or let them be skipped "
                "and counted as `lost`: --set kafka.on_gap=skip"
            )

    def entry(self, lane: int, message: Message) -> Entry:
        """What a message of a lane gives."""
        record, reason = None, "bad_checksum"
        if not message.broken:
            limit, verify = self.max_record_bytes, self.verify
            try:
                record = decode_message(message.value, message.headers, max_bytes=limit, verify=verify)
                reason = ""
            except BadRecord as error:
                reason = error.reason
        return Entry(
            unit=lane,
            index=message.offset,
            record=record,
            reason=reason,
            size=message.size,
            time=message.time,
        )


logger = logging.getLogger(__name__)


class TopicSource:
    """A topic being read (implements source.Source); one per process, not thread-safe.

    `refresh`, `availability` and `read` may block while brokers are away (as long as `kafka.patience_s`), but
    never on records that are still to come.
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
            self._blocks = TopicBlocks(
                self.address,
                self._fetcher,
                lanes=spec.lanes,
                window=spec.window,
                bounds=spec.bounds,
                until=spec.until,
                stop_at_gaps=spec.kafka.on_gap == "stop",
            )
            opened.pop_all()

    def identity(self) -> dict[str, str]:
        """What a cursor is bound to: cluster and topic by their uuids."""
        return {"kind": "kafka", "cluster": self._facts.cluster, "uuid": self._facts.uuid}

    def bounds(self) -> Bounds:
        """First and end offset of each lane for a run that begins now, or began with these."""
        return self._blocks.bounds

    def refresh(self) -> bool:
        """Look for new messages and added partitions; True when there are more messages.

        Raises:
            StreamMismatch: the topic was deleted, and made again under its name.
        """
        more = self._blocks.refresh()
        self._look_at_topic()
        return more

    def sealed(self) -> bool:
        """Whether every lane has its end."""
        return all(end != OPEN for _, end in self._blocks.bounds)

    def availability(self, position: Position, pass_number: int) -> Availability:
        """Unread messages of the lane in blocks that can be read, by their offsets: gaps count as messages.

        Raises:
            StreamMismatch: the position is not one of this topic with these lanes and this window.
            StreamDamaged: the topic ends before the position.
        """
        self._fits(position)
        stop, ended = self._blocks.stop(position.lane)
        if position.end >= 0:
            rest = self._blocks.size(position) - position.idx
            begin = position.end + 1
        else:
            rest, begin = 0, position.base
        beyond = max(stop - begin, 0)
        if not ended:
            beyond -= beyond % self._spec.window
        return Availability(available=rest + beyond, ended=ended)

    def unread(self, positions: Iterable[Position], pass_number: int = 0) -> int:
        """Messages after these positions up to the end of the topic or the run, by their offsets."""
        return sum(self.behind(position) for position in positions)

    def behind(self, position: Position) -> int:
        """Messages of one lane after a position."""
        stop, _ = self._blocks.stop(position.lane)
        if position.end < 0:
            return max(stop - position.base, 0)
        return self._blocks.size(position) - position.idx + max(stop - position.end - 1, 0)

    def read(self, position: Position, pass_number: int) -> Iterator[tuple[Entry, Position]]:
        """Entries from `position` on, each with the position after it; ends where nothing more may be read.

        What is gone is one entry of reason `lost`, which stands for all of it, if `kafka.on_gap` says skip:
        what is missing from a block comes before its first message.

        Raises:
            StreamMismatch: as `availability`.
            StreamDamaged: messages are gone, and `kafka.on_gap` says stop; or the log was written again.
            StreamError: brokers are away for too long.
        """
        self._fits(position)
        while (found := self._blocks.at(position)) is not None:
            if isinstance(found, Lost):
                position = _at(position, base=found.go_on)
                yield self._lost(position, found.messages), position
                continue
            if position.end < 0 and found.gone:
                position = replace(position, end=found.end, proof=found.proof)
                yield self._lost(position, found.gone), position
            for entry, after in self._block(position, found, pass_number):
                position = after
                yield entry, after

    def _block(self, position: Position, block: Block, pass_number: int) -> Iterator[tuple[Entry, Position]]:
        """What is left of a block."""
        lane, messages = position.lane, block.messages
        if position.idx > len(messages):
            raise mismatch(self.address, position, lanes=self.lanes, window=self._spec.window)
        order = record_order(
            seed=self._spec.seed, pass_number=pass_number, lane=lane, number=block.base, count=len(messages)
        ).tolist()
        last = messages[-1]
        for idx in range(position.idx, len(order)):
            if idx + 1 < len(order):
                after = replace(position, idx=idx + 1, end=block.end, proof=block.proof)
            else:
                after = _at(position, base=block.end + 1, unit=max(last.epoch, 0), proof=proof_of([last]))
            yield self._spec.entry(lane, messages[order[idx]]), after

    def _lost(self, position: Position, count: int) -> Entry:
        return Entry(unit=position.lane, index=position.base, record=None, reason=LOST, count=count)

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

    def _fits(self, position: Position) -> None:
        blocks, lane = self._blocks, position.lane
        inside = position.idx == 0 if position.end < 0 else 0 <= position.idx <= blocks.size(position)
        if not 0 <= lane < self.lanes or position.base < 0 or not inside:
            raise mismatch(self.address, position, lanes=self.lanes, window=self._spec.window)
        place, bound = max(position.base, position.end + 1), blocks.bounds[lane][1]
        if place > blocks.ends[lane]:
            self.refresh()  # another process has seen more
            if place > blocks.ends[lane]:
                raise blocks.cut_off(lane, place)
        if bound != OPEN and place > max(bound, blocks.begin(lane)):
            raise mismatch(self.address, position, lanes=self.lanes, window=self._spec.window)

    def _look_at_topic(self) -> None:
        """Refuse another topic of the same name; say loudly that partitions were added.

        Added ones are no lanes of this run, and no reader would miss them.
        """
        uuid = self._fetcher.uuid()
        if uuid and uuid != self._facts.uuid:
            raise StreamMismatch(
                f"{self.address} was deleted and created again while it was read: this run is of topic "
                f"{self._facts.uuid}, the name is of {uuid} now. Begin a new run"
            )
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


def _at(position: Position, *, base: int, unit: int | None = None, proof: int = NONE) -> Position:
    """The beginning of a block."""
    unit = position.unit if unit is None else unit
    return Position(lane=position.lane, unit=unit, base=base, seq=position.seq, proof=proof)
