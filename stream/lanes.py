"""Lanes: where a reader of one is, what reading it cost and met, and which of them a rank reads.

A lane is one of V totally ordered sequences of records. A position is the next unread record of a lane: a
handful of integers, so that nothing else has to be saved or reconstructed at a resume.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

LOST = "lost"
"""Reason of records that were gone before they were read; they say nothing about the quality of the input."""
Bounds = tuple[tuple[int, int], ...]
"""First and end offset of each lane of a topic, an end of -1 being none; empty for shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """The next unread record of one lane; a few integers, the same shape for both carriers."""

    lane: int
    """Which lane, 0 .. V-1."""
    unit: int = 0
    """Shards: number of the first commit of the current window. Kafka: leader epoch."""
    base: int = 0
    """Shards in order shard: slices of this window already finished; else 0. Kafka: offset at which the
    current block starts."""
    idx: int = 0
    """Entries already consumed of the order of the current window (order shard: slice; Kafka: block)."""
    seq: int = 0
    """Good samples that this lane has given so far: the next sample number, over all passes."""
    end: int = -1
    """Kafka: last offset of the current block. Shards: -1."""
    proof: int = 0
    """Kafka: digest of the current block's messages, between blocks of the message before
    (kafka_topic/blocks.py); 0 = none, as in cursors from before there was one. Shards: 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneStats:
    """What reading some chunks cost and met; adds up: read = used + sum of skipped."""

    read: int = 0
    """Records read."""
    used: int = 0
    """Records that became samples."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Records that could not be used, by reason."""
    bytes: int = 0
    """Encoded bytes read."""
    read_s: float = 0.0
    """Seconds of a reader spent fetching bytes."""
    decode_s: float = 0.0
    """Seconds of a reader spent decoding."""
    crop_s: float = 0.0
    """Seconds of a reader spent cutting crops."""

    @property
    def seen(self) -> int:
        """Records that were there to be read: all but those that were lost."""
        return self.read - self.skipped.get(LOST, 0)

    def __add__(self, other: "LaneStats") -> "LaneStats":
        return LaneStats(
            read=self.read + other.read,
            used=self.used + other.used,
            skipped=add_counts(self.skipped, other.skipped),
            bytes=self.bytes + other.bytes,
            read_s=self.read_s + other.read_s,
            decode_s=self.decode_s + other.decode_s,
            crop_s=self.crop_s + other.crop_s,
        )


def add_counts(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Sum of two accounts by reason, keys sorted."""
    return {key: one.get(key, 0) + other.get(key, 0) for key in sorted(one.keys() | other.keys())}


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneLag:
    """How far one lane is behind the end of the stream, or of the run."""

    lane: int
    trained_records: int
    """Records not learned from yet."""
    trained_s: float | None
    """Age of the newest record learned from; 0 when all were, None when it is not known."""
    fetched_records: int
    """Records not read ahead yet."""
    fetched_s: float | None
    """Age of the newest record read ahead; as above."""


@dataclass(frozen=True, slots=True)
class BadRecordRef:
    """Where an unusable record stands, and why it is unusable."""

    lane: int
    unit: int
    index: int
    reason: str

    def __str__(self) -> str:
        return f"lane {self.lane}, unit {self.unit}, record {self.index}: {self.reason}"


def owners_of(lanes: int, ranks: int, groups: int = 1) -> tuple[int, ...]:
    """Which rank reads each lane: lanes sorted by (lane mod groups, lane), cut into runs, one a rank.

    So each group of batch norm, which is lane mod groups, lies on as few ranks as can be, and those are
    neighbours. Where the runs cannot be equal, those of the first ranks are one longer.

    Args:
        lanes: V.
        ranks: learners that share them.
        groups: of batch norm; 0 is one.

    Raises:
        ValueError: more ranks than lanes.
    """
    if ranks > lanes:
        raise ValueError(
            f"{ranks} ranks need at least as many lanes, got {lanes}: raise `lanes` or lower the ranks"
        )
    owners = [0] * lanes
    base, extra = divmod(lanes, ranks)
    in_order = iter(sorted(range(lanes), key=lambda lane: (lane % max(1, groups), lane)))
    for rank in range(ranks):
        for lane in islice(in_order, base + (rank < extra)):
            owners[lane] = rank
    return tuple(owners)


def owned_lanes(lanes: int, ranks: int, rank: int, groups: int = 1) -> tuple[int, ...]:
    """Lanes that a rank reads, ascending; see `owners_of`.

    Raises:
        ValueError: more ranks than lanes, or a rank out of range.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank must be in 0..{ranks - 1}, got {rank}")
    return tuple(lane for lane, owner in enumerate(owners_of(lanes, ranks, groups)) if owner == rank)
