"""A message of a partition, and a stretch of messages that were fetched and follow each other."""

from dataclasses import dataclass, field, replace
from typing import Any

from stream.topic_batches import Voids


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message, or a place whose message cannot be read."""

    offset: int
    epoch: int = -1
    """Leader epoch of its batch."""
    time: float = 0.0
    """When it was sent, seconds since 1970; 0 = not known."""
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    broken: bool = False
    """Its batch fails the check of Kafka, and it states no digest of its own."""
    gone: int = 0
    """Messages missing right before it: offsets that hold neither a message nor a mark of a transaction."""

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.value or b"")


def message_of(one: Any) -> Message:
    """What the client library gives, as a message."""
    return Message(
        offset=one.offset,
        epoch=-1 if one.leader_epoch is None else one.leader_epoch,
        time=max(one.timestamp, 0) / 1000,
        value=one.value,
        headers=tuple(one.headers),
    )


@dataclass(slots=True)
class Kept:
    """Messages of a partition that follow each other."""

    first: int
    after: int
    """Offset to go on from; no message lies between the last one and it."""
    messages: list[Message] = field(default_factory=list)
    num_bytes: int = 0
    gone: int = 0
    """Messages missing between the last one and `after`."""
    epoch: int = -1
    """Leader epoch of the last message; -1 = not known."""

    def add(self, message: Message, voids: Voids) -> None:
        """Take in the next message."""
        gone = self.gone + voids.missing(self.after, message.offset)
        self.messages.append(replace(message, gone=gone) if gone else message)
        self.num_bytes += message.size
        self.after, self.gone, self.epoch = message.offset + 1, 0, message.epoch

    def reach(self, after: int, voids: Voids) -> None:
        """No further message comes before this offset."""
        if after > self.after:
            self.gone += voids.missing(self.after, after)
            self.after = after

    def drop_before(self, offset: int) -> None:
        """Forget what lies before an offset in first .. after."""
        while self.messages and self.messages[0].offset < offset:
            self.num_bytes -= self.messages.pop(0).size
        if not self.messages:
            self.gone = min(self.gone, self.after - offset)
        elif self.messages[0].gone > self.messages[0].offset - offset:
            self.messages[0] = replace(self.messages[0], gone=self.messages[0].offset - offset)
        self.first = offset
