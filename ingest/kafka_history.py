"""What earlier starts of an ingest have put on a topic, as read back from the ends of its partitions.

Record number s of an ingest goes to partition s mod V, and partitions are acknowledged each for itself, so a
killed ingest leaves a whole beginning and, behind it, some records with holes between them. Each record says
in its headers which ingest it is of, its number, up to where all before it were acknowledged, and the place
in the source and the accounts after it. So reading a little back from each end is enough.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stream.errors import StreamDamaged, StreamError
from stream.kafka_topic.fetch import Gone, Message, TopicFetcher
from stream.kafka_topic.message import Headers
from stream.shards.commits import Accounts

INGEST, NUMBER, STATE = "ingest-id", "ingest-seq", "ingest-state"
FIRST_LOOK = 32
"""Messages looked at from each end at first; then twice as many, and so on."""
SETTLE_S = 0.5
"""What a killed process had handed to the network may still arrive for so long ..."""
RECENT_S = 15.0
"""... if it lived so recently."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What a record says of the ingest that sent it."""

    number: int
    acked: int
    """All records of the ingest before this number were acknowledged when it was sent."""
    position: Any
    """JSON value: the place in the source after the record."""
    accounts: Accounts
    """After the record."""
    sha256: str = ""
    time: float = 0.0

    def headers(self, ingest: str) -> Headers:
        """As headers of the message."""
        body = {
            "acked": self.acked,
            "position": self.position,
            "written": self.accounts.written,
            "skipped": dict(self.accounts.skipped),
            "bytes": self.accounts.bytes,
        }
        state = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return [
            (INGEST, ingest.encode("ascii")),
            (NUMBER, str(self.number).encode("ascii")),
            (STATE, state.encode("ascii")),
        ]


def stamp_of(message: Message, ingest: str) -> Stamp | None:
    """The stamp of a message; None when it is not of this ingest.

    Raises:
        StreamDamaged: it is, and cannot be read.
    """
    known = dict(message.headers)
    if known.get(INGEST) != ingest.encode("ascii"):
        return None
    try:
        body = json.loads(known[STATE] or b"")
        return Stamp(
            number=int(known[NUMBER] or b""),
            acked=int(body["acked"]),
            position=body["position"],
            accounts=Accounts(
                written=int(body["written"]), skipped=dict(body["skipped"]), bytes=int(body["bytes"])
            ),
            sha256=(known.get("sha256") or b"").decode("ascii"),
            time=message.time,
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StreamDamaged(
            f"the record at offset {message.offset} is of this ingest, but its headers cannot be read "
            f"({error}): give this ingest another --name, or another topic"
        ) from error


@dataclass(slots=True)
class Past:
    """What is on the topic of one ingest."""

    last: Stamp | None = None
    """The last record of the whole beginning."""
    beyond: dict[int, str] = field(default_factory=dict)
    """Records behind a hole: digest by number."""

    @property
    def next(self) -> int:
        """Number of the first record that is missing."""
        return 0 if self.last is None else self.last.number + 1


class TopicHistory:
    """Reads back what one ingest has sent.

    Args:
        fetcher: reads the topic.
        partitions: of it.
        ingest: id of the ingest.
        floor: offset in each partition below which nothing of the ingest lies.
    """

    def __init__(self, fetcher: TopicFetcher, partitions: int, ingest: str, floor: dict[int, int]) -> None:
        self._fetcher, self._partitions, self._ingest, self._floor = fetcher, partitions, ingest, floor
        self._found: dict[int, Stamp] = {}

    def past(self) -> Past:
        """How far the ingest has come. May block on the network. Raises StreamError."""
        ends = self._settled_ends()
        lows = dict(ends)
        for partition, end in ends.items():
            lows[partition] = self._back(partition, end, below=None)
        acked = max((stamp.acked for stamp in self._found.values()), default=0)
        for partition, low in lows.items():
            self._back(partition, low, below=acked)
        number = acked
        while number in self._found:
            number += 1
        if number and number - 1 not in self._found:
            raise StreamError(
                f"record {number - 1} of this ingest was sent and is gone from the topic, with the place in "
                "the source that it held (retention?): give this ingest another --name to start over"
            )
        return Past(
            last=self._found[number - 1] if number else None,
            beyond={n: stamp.sha256 for n, stamp in self._found.items() if n > number},
        )

    def digests(self, below: int) -> Iterator[str]:
        """Digest of each record of the ingest with a lower number. Reads all of them from the topic."""
        for partition, end in self._ends().items():
            offset = self._floor[partition]
            while offset < end:
                messages, offset = self._messages(partition, offset, min(end, offset + 256), end)
                for message in messages:
                    stamp = stamp_of(message, self._ingest)
                    if stamp is not None and stamp.number < below:
                        yield stamp.sha256

    def _ends(self) -> dict[int, int]:
        while (ends := self._fetcher.ends(range(self._partitions))) is None:
            time.sleep(0.2)
        return ends

    def _settled_ends(self) -> dict[int, int]:
        """The ends, once nothing of an earlier process arrives any more."""
        ends = self._ends()
        for partition, end in ends.items():
            self._back(partition, end, below=None)
        while any(time.time() - stamp.time < RECENT_S for stamp in self._found.values()):
            time.sleep(SETTLE_S)
            before, ends = ends, self._ends()
            if ends == before:
                break
        self._found.clear()
        return ends

    def _back(self, partition: int, high: int, *, below: int | None) -> int:
        """Look back from `high` until a record of the ingest (with a number below) is found; where to."""
        floor, size = self._floor[partition], FIRST_LOOK
        of_here = [s for s in self._found.values() if s.number % self._partitions == partition]
        if any(below is None or stamp.number < below for stamp in of_here):
            return high
        while high > floor:
            low = max(floor, high - size)
            found = False
            offset = low
            while offset < high:
                messages, offset = self._messages(partition, offset, high, high)
                for message in messages:
                    stamp = stamp_of(message, self._ingest)
                    if stamp is not None:
                        self._found[stamp.number] = stamp
                        found = found or below is None or stamp.number < below
            high, size = low, size * 2
            if found:
                break
        return high

    def _messages(self, partition: int, offset: int, until: int, stop: int) -> tuple[list[Message], int]:
        """Some messages from an offset on, below `stop`; where the log begins later, from there."""
        try:
            return self._fetcher.messages(partition, offset, count=max(until - offset, 1), stop=stop)
        except Gone:
            while (starts := self._fetcher.starts([partition])) is None:
                time.sleep(0.2)
            return [], max(starts[partition], offset + 1)
