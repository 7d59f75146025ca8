"""Reads the log of commits of a stream, from its segments and from the newest commits' own files."""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from stream.commits import Commit, Seal, decode_commit
from stream.errors import StreamDamaged
from stream.floor import Floor, read_floor
from stream.segments import BLOCKS, Segment, SegmentStore
from stream.storage import Store, explained

BLOCK = BLOCKS[1]
_KEPT_COMMITS = 1024
"""Parsed commits kept in memory."""


def commit_name(number: int) -> str:
    """Name of a commit's own file."""
    return f"commits/{number:020d}.json"


class CommitLog:
    """The commits of one stream, in their order; one object per process, not thread-safe.

    What it answers is as of the last `refresh`. It keeps eight bytes a commit in memory, and reads the rest
    when asked. Segments win over commit files (see manifest.py).
    """

    def __init__(self, store: Store, stream_uuid: str) -> None:
        """Know nothing yet; `refresh` reads."""
        self.store = store
        self.url = store.url
        self.uuid = stream_uuid
        self._segments = SegmentStore(store)
        self._size = 0
        self._before = np.zeros(BLOCK, np.int64)  # [i]: records before commit i; valid up to _size
        self._tail: dict[int, bytes] = {}  # commits that may not be in a segment
        self._covered = 0  # commits that are known to be in segments
        self._commits: OrderedDict[int, Commit] = OrderedDict()
        self._seal: Seal | None = None
        self.floor = Floor()
        """How far the stream is pruned, as of the last look."""

    def __len__(self) -> int:
        """Commits."""
        return self._size

    @property
    def records(self) -> int:
        """Records of all commits."""
        return int(self._before[self._size])

    @property
    def sealed(self) -> bool:
        """Whether the stream has its end."""
        return self._seal is not None

    def n(self, number: int) -> int:
        """Records of a commit."""
        self._check(number, self._size)
        return int(self._before[number + 1] - self._before[number])

    def counts(self) -> NDArray[np.int64]:
        """int64 [len(self)]: records of each commit."""
        return np.diff(self._before[: self._size + 1])

    def before(self, number: int) -> int:
        """Records of all commits before `number`, which may be len(self)."""
        self._check(number, self._size + 1)
        return int(self._before[number])

    def holding(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64: the commit that holds each of some records, which are numbered over the whole stream."""
        return np.searchsorted(self._before[: self._size + 1], records, side="right") - 1

    def entry(self, number: int) -> Commit:
        """A commit. Raises IndexError when there is none, StreamDamaged when it cannot be trusted."""
        self._check(number, self._size)
        commit = self._commits.get(number)
        if commit is None:
            decoded = decode_commit(self._row(number), number=number, before=self.before(number))
            if not isinstance(decoded, Commit) or decoded.n != self.n(number):
                raise StreamDamaged(f"commit {number} of {self.url} is not what its segment counted")
            commit = decoded
            self._commits[number] = commit
            if len(self._commits) > _KEPT_COMMITS:
                self._commits.popitem(last=False)
        self._commits.move_to_end(number)
        return commit

    def stored(self) -> int:
        """Bytes of the tars of all commits that are not pruned; a second or so for a million of them.

        Raises:
            StreamDamaged: a commit cannot be trusted.
            StreamError: the store does not answer.
        """
        total, number = 0, self.floor.first
        with explained(f"cannot read the stream at {self.url}"):
            while number < self._size:
                segment = self._whole_segment(number)
                if segment is None:
                    total += self.entry(number).bytes
                    number += 1
                else:
                    total += int(segment.sizes()[number - segment.first :].sum())
                    number = segment.first + segment.count
        return total

    def refresh(self) -> bool:
        """Look for new commits and the seal.

        Returns:
            Whether the stream grew or was sealed since the last look.

        Raises:
            StreamDamaged: a commit or segment cannot be trusted.
            StreamError: the store does not answer.
        """
        size, sealed = self._size, self.sealed
        with explained(f"cannot read the stream at {self.url}"):
            while not self.sealed:
                start = self._size
                self._read_segments(2)
                self._read_segments(1)
                self._read_tail()
                if self._size == start:
                    break
            self._forget_compacted()
        return (self._size, self.sealed) != (size, sealed)

    def look_at_floor(self) -> Floor:
        """Look how far the stream is pruned; what it answers is the floor from now on.

        Raises:
            StreamDamaged: the floor is not one of this stream.
            StreamError: the store does not answer.
        """
        with explained(f"cannot read the stream at {self.url}"):
            floor = read_floor(self.store)
        if floor.first > self._size:
            self.refresh()
        if floor.first > self._size or floor.records != self.before(floor.first):
            raise StreamDamaged(
                f"the stream at {self.url} says that {floor.records} records before commit {floor.first} "
                f"were pruned; its manifest, of {self._size} commits, does not fit"
            )
        self.floor = floor
        return floor

    def close(self) -> None:
        """Let go of files. May be called twice; what is asked later opens them again."""
        self._segments.close()

    def _read_segments(self, level: int) -> None:
        while (segment := self._segments.find(level, self._size)) is not None:
            at = self._size - segment.first
            counts = segment.counts()
            if segment.before + int(counts[:at].sum()) != self.records:
                raise StreamDamaged(
                    f"manifest segment {segment.name} counts other records before commit {self._size} than "
                    f"the {self.records} that were read"
                )
            self._append(counts[at:])
            self._covered = self._size

    def _read_tail(self) -> None:
        """Read commit files until one is missing; an idle look asks for one only."""
        ahead = 1
        while not self.sealed:
            names = [commit_name(number) for number in range(self._size, self._size + ahead)]
            found = self.store.read_many(names)
            for name in names:
                data = found.get(name)
                if data is None:
                    return
                self._take_in(data)
                if self.sealed:
                    return
            ahead = min(ahead * 4, BLOCK)

    def _take_in(self, data: bytes) -> None:
        number = self._size
        commit = decode_commit(data, number=number, before=self.records)
        if isinstance(commit, Seal):
            self._seal = commit
            return
        self._tail[number] = data
        self._append(np.array([commit.n], np.int64))

    def _append(self, counts: NDArray[np.int64]) -> None:
        size = self._size + counts.size
        if size + 1 > self._before.size:
            grown = np.zeros(max(2 * self._before.size, size + 1), np.int64)
            grown[: self._size + 1] = self._before[: self._size + 1]
            self._before = grown
        self._before[self._size + 1 : size + 1] = self._before[self._size] + np.cumsum(counts)
        self._size = size

    def _row(self, number: int) -> bytes:
        data = self._tail.get(number)
        if data is not None:
            return data
        with explained(f"cannot read the stream at {self.url}"):
            segment = self._segments.covering(number)
            if segment is None:
                raise StreamDamaged(f"commit {number} of {self.url} is gone: neither file nor segment has it")
            return segment.row(number)

    def _whole_segment(self, number: int) -> Segment | None:
        """The segment over a commit, if all of it was read: its sums are true then."""
        segment = self._segments.covering(number) if number < self._covered else None
        return segment if segment is not None and segment.first + segment.count <= self._size else None

    def _check(self, number: int, stop: int) -> None:
        if not 0 <= number < stop:
            raise IndexError(f"commit {number} of a stream with {self._size}")

    def _forget_compacted(self) -> None:
        """Drop from memory what segments have; one block stays for writers."""
        while len(self._tail) > 2 * BLOCK:
            first = min(self._tail)
            segment = self._segments.covering(first)
            if segment is None:
                return
            stop = segment.first + segment.count
            self._covered = max(self._covered, min(stop, self._size))
            for number in [number for number in self._tail if number < stop]:
                del self._tail[number]
