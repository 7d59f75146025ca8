"""What is read: a stream as a reader sees it, lane by lane, whatever carries it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from stream.lanes import Bounds, Position
from stream.record import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One place of a lane: where it stands, and what was found there."""

    unit: int
    """Shards: commit number. Kafka: partition."""
    index: int
    """Shards: record number in the shard. Kafka: offset."""
    record: Record | None
    """None when the record cannot be used."""
    reason: str = ""
    """Why it cannot be used; empty when it can."""
    size: int = 0
    """Encoded bytes read for it."""
    count: int = 1
    """Records that it stands for: more than one only when they are lost."""
    time: float = 0.0
    """When the record was put on the stream, seconds since 1970; 0 = not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """What one lane still has after a position."""

    available: int
    """Unread records of this lane that may be read now."""
    ended: bool
    """No further record will ever come (the stream is sealed and its end is known)."""


class Source(Protocol):
    """A stream being read, lane by lane; one object per process, not thread-safe.

    Every method is a function of its arguments and of what is committed: a source holds no position.
    """

    lanes: int

    def identity(self) -> dict[str, str]:
        """What the cursor is bound to: kind and uuid, never an address; equal for every reader."""
        ...

    def bounds(self) -> Bounds:
        """Where lanes begin and end for a run; empty where that follows from the stream."""
        ...

    def refresh(self) -> bool:
        """Look for new commits; True when the stream grew or was sealed. Never waits for arrivals."""
        ...

    def sealed(self) -> bool:
        """Whether the stream has its end."""
        ...

    def availability(self, position: Position, pass_number: int) -> Availability:
        """How much of the lane after `position` may be read now. No record is read."""
        ...

    def unread(self, positions: Iterable[Position], pass_number: int = 0) -> int:
        """Committed records after these positions, also those that may not be read yet."""
        ...

    def read(self, position: Position, pass_number: int) -> Iterator[tuple[Entry, Position]]:
        """Entries from `position` on, each with the position after it, as far as may be read now.

        The caller raises `seq` of the position after: it alone knows whether the record became a sample.
        """
        ...

    def entry(self, unit: int, index: int) -> Entry:
        """Read one record again, by the place that its `Entry` named."""
        ...

    def close(self) -> None:
        """Let go of files and connections. May be called twice."""
        ...


class SourceSpec(Protocol):
    """What a reader process needs to open the stream for itself; small and picklable."""

    def open(self) -> Source:
        """Open the stream in this process."""
        ...
