"""Segments: many commits in one file, so that a manifest of a million commits opens at once.

A segment holds the commits of one whole block: 256 commits (level 1) or 65,536 (level 2), from a multiple of
that on; its name follows from level and first commit, so nothing is ever listed. Its bytes follow from the
commits alone: two writers that compact the same block write the same file.

    header    64 bytes, little endian: magic, first, count, before, bytes of sources, CRC-32 of the three
              tables and of the header
    counts    int64 [count]: records of each commit
    places    uint64 [count + 1]: where each row begins in `rows`; uint32 [count]: CRC-32 of each row
    sources   JSON {source_id: [number of its last commit here, written, bytes, {reason: n}]}
    rows      the commits' JSON, one after the other

Opening a manifest reads headers and counts only; a row is read when it is asked for.
"""

import itertools
import json
import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.errors import StreamDamaged
from stream.shards.commits import MOST_RECORDS, Accounts, Commit, decode_accounts
from stream.storage import Bytes, Store

BLOCKS = {1: 256, 2: 65_536}
"""Commits of a segment, by level."""
_MAGIC = b"SWAVSEG1"
_HEADER = struct.Struct("<8sQQQQIIII")
_HEADER_BYTES = 64
_SIZE = re.compile(rb'"bytes":(\d{1,13}),"created":')
"""The size of the tar in a commit's JSON, whose keys are sorted; that in its accounts is not followed so."""
_OPEN_SEGMENTS = 16
"""Segments whose tables are kept in memory; the largest have 0.8 MB."""


def segment_name(level: int, first: int) -> str:
    """Name of the segment of a level that begins at commit `first`."""
    return f"segments/{level}-{first:020d}.seg"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSum:
    """What one segment knows of one source."""

    last: int
    """Number of the source's last commit in the segment."""
    accounts: Accounts


def encode_segment(first: int, before: int, rows: Sequence[bytes], commits: Sequence[Commit]) -> bytes:
    """The bytes of a segment.

    Args:
        first: number of its first commit.
        before: records of all commits before that.
        rows: JSON of each commit.
        commits: the same commits, read.
    """
    sums: dict[str, SourceSum] = {}
    for commit in commits:
        old = sums.get(commit.source_id)
        sums[commit.source_id] = SourceSum(
            last=commit.number, accounts=commit.accounts if old is None else old.accounts + commit.accounts
        )
    counts = np.array([commit.n for commit in commits], "<i8")
    return assemble_segment(first, before, counts, rows, sums)


def assemble_segment(
    first: int, before: int, counts: NDArray[np.int64], rows: Sequence[bytes], sums: Mapping[str, SourceSum]
) -> bytes:
    """The bytes of a segment from parts that are known already (see `encode_segment`)."""
    sources = json.dumps(
        {
            name: [own.last, own.accounts.written, own.accounts.bytes, dict(own.accounts.skipped)]
            for name, own in sums.items()
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode("ascii")
    count_bytes = counts.astype("<i8").tobytes()
    places = np.zeros(len(rows) + 1, "<u8")
    np.cumsum([len(row) for row in rows], out=places[1:])
    checks = np.array([zlib.crc32(row) for row in rows], "<u4")
    place_bytes = places.tobytes() + checks.tobytes()
    head = _HEADER.pack(
        _MAGIC,
        first,
        len(rows),
        before,
        len(sources),
        zlib.crc32(count_bytes),
        zlib.crc32(place_bytes),
        zlib.crc32(sources),
        0,
    )[:-4]
    head += struct.pack("<I", zlib.crc32(head))
    return head.ljust(_HEADER_BYTES, b"\0") + count_bytes + place_bytes + sources + b"".join(rows)


class Segment:
    """One segment open for reading."""

    def __init__(self, name: str, file: Bytes, *, first: int, count: int) -> None:
        """Check the header; raises StreamDamaged when it is not the segment that `name` says."""
        self.name = name
        self.first = first
        self.count = count
        self._file = file
        head = file.read_at(0, _HEADER_BYTES)
        if len(head) < _HEADER_BYTES:
            raise self._damaged("it ends inside its header")
        magic, *fields = _HEADER.unpack_from(head)
        stated_first, stated_count, self.before, self._sources_bytes, *checks = fields
        self._count_check, self._place_check, self._sources_check, head_check = checks
        if magic != _MAGIC or zlib.crc32(head[: _HEADER.size - 4]) != head_check:
            raise self._damaged("its header is not one of a segment")
        if (stated_first, stated_count) != (first, count):
            raise self._damaged(
                f"it has {stated_count} commits from {stated_first} on, not {count} from {first}"
            )
        if self.before > 2**62:
            raise self._damaged(f"it states {self.before} records before it")
        self._places_at = _HEADER_BYTES + 8 * count
        self._sources_at = self._places_at + 8 * (count + 1) + 4 * count
        self._rows_at = self._sources_at + self._sources_bytes
        if self._rows_at > file.size:
            raise self._damaged("it is cut short")
        self._places: NDArray[np.uint64] | None = None
        self._checks: NDArray[np.uint32] | None = None

    def counts(self) -> NDArray[np.int64]:
        """int64 [count]: records of each commit."""
        data = self._table(_HEADER_BYTES, 8 * self.count, self._count_check)
        counts = np.frombuffer(data, "<i8").astype(np.int64)
        if counts.size and not (counts.min() >= 0 and counts.max() <= MOST_RECORDS):
            raise self._damaged("it has a commit with an impossible number of records")
        return counts

    def row(self, number: int) -> bytes:
        """JSON of one commit."""
        if self._places is None or self._checks is None:
            data = self._table(self._places_at, 12 * self.count + 8, self._place_check)
            self._places = np.frombuffer(data, "<u8", self.count + 1)
            self._checks = np.frombuffer(data, "<u4", self.count, 8 * (self.count + 1))
        at = number - self.first
        start, stop = int(self._places[at]), int(self._places[at + 1])
        if not start <= stop <= self._file.size - self._rows_at:
            raise self._damaged(f"commit {number} lies outside of it")
        data = self._file.read_at(self._rows_at + start, stop - start)
        if zlib.crc32(data) != int(self._checks[at]):
            raise self._damaged(f"the checksum of commit {number} is wrong")
        return data

    def sizes(self) -> NDArray[np.int64]:
        """int64 [count]: bytes of each commit's tar. Reads all rows, without all that each of them says."""
        self.row(self.first)  # reads the tables
        assert self._places is not None
        assert self._checks is not None
        places = [int(place) for place in self._places]
        if not all(start <= stop for start, stop in itertools.pairwise(places)):
            raise self._damaged("its rows overlap")
        rows = self._file.read_at(self._rows_at, places[-1])
        sizes = np.zeros(self.count, np.int64)
        for at, (start, stop) in enumerate(itertools.pairwise(places)):
            row = rows[start:stop]
            if zlib.crc32(row) != int(self._checks[at]):
                raise self._damaged(f"the checksum of commit {self.first + at} is wrong")
            found = _SIZE.findall(row)
            # Twice where a source's position has such keys too.
            sizes[at] = int(found[0]) if len(found) == 1 else json.loads(row)["bytes"]
        return sizes

    def sources(self) -> dict[str, SourceSum]:
        """What each source has in this segment."""
        data = self._table(self._sources_at, self._sources_bytes, self._sources_check)
        try:
            return {
                name: SourceSum(last=int(last), accounts=_accounts(written, size, skipped))
                for name, (last, written, size, skipped) in json.loads(data).items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise self._damaged(f"its table of sources cannot be read: {error!r}") from error

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _table(self, at: int, length: int, check: int) -> bytes:
        data = self._file.read_at(at, length)
        if len(data) != length or zlib.crc32(data) != check:
            raise self._damaged("a table has a wrong checksum")
        return data

    def _damaged(self, what: str) -> StreamDamaged:
        return StreamDamaged(f"manifest segment {self.name}: {what}")


class SegmentStore:
    """The segments of one manifest, found by name, a few of them kept open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: OrderedDict[tuple[int, int], Segment] = OrderedDict()

    def find(self, level: int, number: int) -> Segment | None:
        """The segment of this level that covers a commit; None when there is none (yet, or any more)."""
        first = number - number % BLOCKS[level]
        key = (level, first)
        segment = self._open.get(key)
        if segment is None:
            name = segment_name(level, first)
            try:
                file = self._store.open(name)
            except FileNotFoundError:
                return None
            try:
                segment = Segment(name, file, first=first, count=BLOCKS[level])
            except StreamDamaged:
                file.close()
                raise
            self._open[key] = segment
            if len(self._open) > _OPEN_SEGMENTS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return segment

    def covering(self, number: int) -> Segment | None:
        """The largest segment that has a commit. A segment wins over a commit's own file."""
        return self.find(2, number) or self.find(1, number)

    def compact(self, first: int, before: int, rows: Sequence[bytes], commits: Sequence[Commit]) -> None:
        """Write the level 1 segment of a block of commits."""
        self._store.replace(segment_name(1, first), encode_segment(first, before, rows, commits))

    def merge(self, first: int) -> bool:
        """Write the level 2 segment at `first` from its level 1 segments; False when one of them is gone."""
        rows: list[bytes] = []
        counts: list[NDArray[np.int64]] = []
        sums: dict[str, SourceSum] = {}
        before = 0
        for start in range(first, first + BLOCKS[2], BLOCKS[1]):
            segment = self.find(1, start)
            if segment is None:
                return False
            before = segment.before if start == first else before
            counts.append(segment.counts())
            rows.extend(segment.row(number) for number in range(start, start + BLOCKS[1]))
            for name, own in segment.sources().items():
                old = sums.get(name)
                sums[name] = (
                    own if old is None else SourceSum(last=own.last, accounts=old.accounts + own.accounts)
                )
        self._store.replace(
            segment_name(2, first), assemble_segment(first, before, np.concatenate(counts), rows, sums)
        )
        return True

    def close(self) -> None:
        """Let go of all files."""
        while self._open:
            self._open.popitem()[1].close()


def _accounts(written: int, size: int, skipped: Mapping[str, int]) -> Accounts:
    found = written + sum(skipped.values())
    return decode_accounts({"found": found, "written": written, "skipped": skipped, "bytes": size})
