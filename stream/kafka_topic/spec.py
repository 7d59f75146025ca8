"""What it takes to read a topic: where it is, as how many lanes, in which blocks, from where to where."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream.config import KafkaConfig
from stream.errors import BadRecord, StreamDamaged, StreamMismatch
from stream.kafka_topic.address import read_address
from stream.kafka_topic.client import TopicFacts
from stream.kafka_topic.fetch import Message
from stream.kafka_topic.message import decode_message
from stream.lanes import Bounds
from stream.order import LARGEST_SEED
from stream.source import Entry

if TYPE_CHECKING:
    from stream.kafka_topic.source import TopicSource

OPEN = -1
"""End of a lane that has none."""


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
        from stream.kafka_topic.source import TopicSource  # noqa: PLC0415  it reads by this specification

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
