"""Reads a Kafka topic lane by lane: a partition is a lane.

Each lane is cut into blocks of `window` messages, counted from where the lane begins (never by arithmetic on
offsets: transactions and compaction leave gaps). The messages of a block are read in an order drawn from
order.py with the offset that the block begins at. A block can be read once it is full, or the topic has its
end for this run, so the order never depends on when somebody looked. A position names the block by its first
and last offset and how many of its messages are used.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from stream.errors import StreamDamaged, StreamMismatch
from stream.kafka_topic.address import TopicAddress, read_address
from stream.kafka_topic.blocks import NONE, Block, Lost, TopicBlocks, mismatch, proof_of
from stream.kafka_topic.client import look_at
from stream.kafka_topic.fetch import TopicFetcher
from stream.kafka_topic.spec import OPEN, TopicSpec
from stream.lanes import LOST, Bounds, Position
from stream.order import record_order
from stream.source import Entry, Outlook

logger = logging.getLogger(__name__)


class TopicSource:
    """A topic being read (implements source.Source); one per process, not thread-safe.

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
            self._blocks = TopicBlocks(self.address, spec, self._fetcher)
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
            StreamMismatch: the topic was deleted, and made anew under its name.
        """
        more = self._blocks.refresh()
        self._look_at_topic()
        return more

    def sealed(self) -> bool:
        """Whether every lane has its end."""
        return all(end != OPEN for _, end in self._blocks.bounds)

    def outlook(self, position: Position, pass_number: int) -> Outlook:
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
        return Outlook(available=rest + beyond, ended=ended)

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
            StreamMismatch: as `outlook`.
            StreamDamaged: messages are gone, and `kafka.on_gap` says stop; or the log was written anew.
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
            raise mismatch(self.address, self._spec, position)
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
            raise mismatch(self.address, self._spec, position)
        place, bound = max(position.base, position.end + 1), blocks.bounds[lane][1]
        if place > blocks.ends[lane]:
            self.refresh()  # another process has seen more
            if place > blocks.ends[lane]:
                raise blocks.cut_off(lane, place)
        if bound != OPEN and place > max(bound, blocks.begin(lane)):
            raise mismatch(self.address, self._spec, position)

    def _look_at_topic(self) -> None:
        """Refuse another topic of the same name; say loudly that partitions were added.

        Added ones are no lanes of this run, and nobody would miss them.
        """
        uuid = self._fetcher.uuid()
        if uuid and uuid != self._facts.uuid:
            raise StreamMismatch(
                f"{self.address} was deleted and made anew while it was read: this run is of topic "
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
