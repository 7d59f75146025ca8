"""The manifest: the log of committed shards, and the only truth about what a stream holds.

    stream.json              version and uuid; made once
    commits/<number>.json    one commit (20 digits), made by exclusive create of the next number
    segments/                compacted commits, see segments.py
    shards/, index/          tars and their index sidecars
    pruned.json, readers/    what was pruned, and for whom the rest is kept: low_watermark.py, readers.py

A number is taken only at the commit, so there are no gaps, and order does not depend on who looked when. The
seal takes the number after the last commit: a writer that raced it finds its number taken, and by what.

A commit's own file is removed once its block and the one after it are compacted. A writer that slept all that
time could make the file again; so a writer looks for a segment over its number after the create, and if there
is one it takes its file back and goes on from the true end. Readers let a segment win over a file.
"""

import json
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stream.errors import StreamDamaged, StreamError, StreamNotFound, StreamSealed
from stream.shards.commits import Accounts, Commit, NewCommit, Seal, decode_commit, encode_commit, encode_seal
from stream.shards.low_watermark import Floor, read_floor
from stream.shards.segments import BLOCKS, Segment, SegmentStore, SourceSum, segment_name
from stream.storage import Store, as_stream_error, open_store

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
        with as_stream_error(f"cannot read the stream at {self.url}"):
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
        with as_stream_error(f"cannot read the stream at {self.url}"):
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
        with as_stream_error(f"cannot read the stream at {self.url}"):
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
        with as_stream_error(f"cannot read the stream at {self.url}"):
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


MANIFEST_VERSION = 1
_HEAD = "stream.json"
_log = logging.getLogger(__name__)


class Manifest(CommitLog):
    """The commits of one stream, read and written; one object per process, not thread-safe.

    What it answers is as of the last `refresh` (opening and committing refresh too).
    """

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """Open a stream's manifest and read it to its end.

        Args:
            url: folder, or any URL that fsspec knows.
            create: make an empty stream when there is none.

        Raises:
            StreamNotFound: nothing is there and `create` is false.
            StreamDamaged: what is there cannot be trusted, or is of another version.
            StreamError: it cannot be read or made (permissions, disk, network).
            ValueError: not an address.
        """
        store = open_store(url)
        with as_stream_error(f"cannot open the stream at {store.url}"):
            stream_uuid = _read_head(store)
            if stream_uuid is None and create:
                body = {"version": MANIFEST_VERSION, "uuid": uuid.uuid4().hex}
                store.create(_HEAD, json.dumps(body, sort_keys=True).encode("ascii"))
                stream_uuid = _read_head(store)
        if stream_uuid is None:
            raise StreamNotFound(_what_makes_one(store))
        manifest = cls(store, stream_uuid)
        manifest.refresh()
        manifest.look_at_floor()
        return manifest

    def commit(self, new: NewCommit) -> Commit:
        """Take the next number for a shard that is already in its place.

        Returns:
            The commit, visible to every reader and durable.

        Raises:
            StreamSealed: the stream has its end.
            StreamError: it cannot be written; nothing was committed then (after a lost answer of an object
                store it may have been: the shard must not be written again under another name).
        """
        token = uuid.uuid4().hex
        while True:
            number, before = self._size, self.records
            if self.sealed:
                raise StreamSealed(
                    f"the stream at {self.url} is sealed after {number} commits: write to another one"
                )
            data = encode_commit(new, number=number, before=before, created=time.time(), token=token)
            if self._take(number, data):
                break
        commit = self.entry(number)
        try:
            self._compact()
        except (StreamError, OSError) as error:
            # The commit stands; the next one tries again.
            _log.warning("cannot compact the manifest of %s: %s", self.url, error)
        return commit

    def seal(self) -> None:
        """Give the stream its end; no commit can follow. Sealing again does nothing."""
        token = uuid.uuid4().hex
        while not self.sealed:
            number = self._size
            data = encode_seal(number=number, before=self.records, created=time.time(), token=token)
            self._take(number, data)

    def commits_of(self, source_id: str) -> Iterator[Commit]:
        """All commits of a source, in their order."""
        number = 0
        while number < self._size:
            segment = self._whole_segment(number)
            if segment is not None and source_id not in segment.sources():
                number = segment.first + segment.count
                continue
            stop = segment.first + segment.count if segment else self._size
            while number < stop:
                commit = self.entry(number)
                number += 1
                if commit.source_id == source_id:
                    yield commit

    def last_of(self, source_id: str) -> Commit | None:
        """The last commit of a source, where an ingest of it goes on; None when it has none."""
        number = self._size - 1
        while number >= 0:
            segment = self._whole_segment(number)
            if segment is None:
                commit = self.entry(number)
                if commit.source_id == source_id:
                    return commit
                number -= 1
                continue
            own = segment.sources().get(source_id)
            if own is not None:
                return self.entry(own.last)
            number = segment.first - 1
        return None

    def accounts_of(self, source_id: str) -> Accounts:
        """Sum of the accounts of all commits of a source."""
        total = Accounts()
        number = 0
        while number < self._size:
            segment = self._whole_segment(number)
            if segment is None:
                commit = self.entry(number)
                total = total + commit.accounts if commit.source_id == source_id else total
                number += 1
                continue
            own = segment.sources().get(source_id)
            total = total if own is None else total + own.accounts
            number = segment.first + segment.count
        return total

    def sources(self) -> dict[str, SourceSum]:
        """All sources: the number of the last commit of each and the sum of its accounts."""
        sums: dict[str, SourceSum] = {}
        number = 0
        while number < self._size:
            segment = self._whole_segment(number)
            if segment is None:
                commit = self.entry(number)
                own = {commit.source_id: SourceSum(last=number, accounts=commit.accounts)}
                number += 1
            else:
                own = segment.sources()
                number = segment.first + segment.count
            for name, one in own.items():
                old = sums.get(name)
                sums[name] = (
                    one if old is None else SourceSum(last=one.last, accounts=old.accounts + one.accounts)
                )
        return sums

    def _take(self, number: int, data: bytes) -> bool:
        """Try to make the file of the next commit; when another was first, read on and say False."""
        name = commit_name(number)
        with as_stream_error(f"cannot commit to the stream at {self.url}"):
            try:
                made = self.store.create(name, data)
            except OSError:
                made = False
                if self.store.read_many([name]).get(name) != data:
                    raise
            # A lost answer that was asked again looks like another writer's commit.
            made = made or self.store.read_many([name]).get(name) == data
            segment = self._segments.covering(number) if made else None
            if segment is not None and segment.row(number) != data:
                self.store.delete(name)  # this process slept while the block was compacted and cleared
                made = False
        if made:
            self._take_in(data)
        else:
            self.refresh()
        return made

    def _compact(self) -> None:
        """Put whole blocks of commits into segments; remove what the block before them left."""
        while self._size - self._covered >= BLOCK:
            first = self._covered - self._covered % BLOCK
            numbers = range(first, first + BLOCK)
            if all(number in self._tail for number in numbers):
                rows = [self._tail[number] for number in numbers]
                commits = [self.entry(number) for number in numbers]
                self._segments.compact(first, self.before(first), rows, commits)
            elif self._segments.covering(first) is None:
                raise StreamError(f"commits from {first} on are neither in memory nor in a segment")
            self._covered = first + BLOCK
            for number in range(max(first - BLOCK, 0), first):
                self.store.delete(commit_name(number))
            if self._covered % BLOCKS[2] == 0:
                self._merge(self._covered - BLOCKS[2])
        self._forget_compacted()

    def _merge(self, first: int) -> None:
        if self._segments.merge(first):
            for start in range(max(first - BLOCKS[2], 0), first, BLOCK):
                self.store.delete(segment_name(1, start))


def _read_head(store: Store) -> str | None:
    try:
        data = store.read(_HEAD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        body = json.loads(data)
        version, stream_uuid = body["version"], body["uuid"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StreamDamaged(f"{store.url}/{_HEAD} cannot be read: {error!r}") from error
    if version != MANIFEST_VERSION or not isinstance(stream_uuid, str):
        raise StreamDamaged(
            f"the stream at {store.url} has version {version!r}; this program reads {MANIFEST_VERSION}"
        )
    return stream_uuid


def _what_makes_one(store: Store) -> str:
    made = f"`swavstream ingest SOURCE {store.url}` makes one"
    if store.exists(""):  # perhaps the folder of images itself
        made = f"if it holds images, `swavstream ingest {store.url} STREAM` makes one of them"
    return f"no stream at {store.url}: {made}; `learn --wait` waits for one"
