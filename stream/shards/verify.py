"""Looks whether a stream is what its writers wrote: manifest, indexes, tars, if asked every byte and image.

Nothing is changed, and nothing is believed: what cannot be read is a damage with a name, and looking goes on.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stream.config import ReaderConfig
from stream.errors import BadRecord, StreamError
from stream.images.decode import decode_image
from stream.shards.commits import Commit, is_absolute
from stream.shards.files import ShardFiles
from stream.shards.index import ShardIndex, decode_index
from stream.shards.manifest import Manifest
from stream.shards.readers import read_readers
from stream.shards.segments import BLOCKS, Segment, SegmentStore
from stream.storage import Bytes, as_stream_error, open_bytes

_PIECE_BYTES = 1 << 22
_MOST_PIXELS = ReaderConfig().max_pixels
_NAMED_RECORDS = 5
"""Unusable records of one shard that are named; the others are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One thing that is not what it should be."""

    name: str
    """File or commit."""
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """How far a look has come."""

    commits: int
    """Looked at, of all that are kept."""
    of: int
    bytes: int
    """Of tars, that were read."""
    unchecked: int = 0
    """Records that were read, but whose index has no digest: whether their images changed is not known."""


def verify(
    manifest: Manifest, *, deep: bool = False, progress: Callable[[Looked], None] = lambda _looked: None
) -> Iterator[Damage]:
    """Everything that is wrong with a stream, as it is found.

    Shards that were pruned are not looked at, but for their place in the manifest and their digests.

    Args:
        manifest: of the stream, open: a head that cannot be read, or commits that do not follow one another,
            keep it from being opened, and that is the damage then.
        deep: also read every tar, compare its digest (of adopted tars that of each record), and decode every
            image as a reader would: a digest says that bytes are those that were written, not that they are
            whole.
        progress: called after each commit.

    Raises:
        StreamError: the store does not answer.
    """
    try:
        read_readers(manifest.store)
    except StreamError as error:
        yield Damage(name="readers", what=str(error))
    yield from _segments(manifest)
    floor, size = manifest.floor.first, len(manifest)
    files = ShardFiles(manifest, verify=True, max_record_bytes=1 << 31)
    read = unchecked = 0
    try:
        for number in range(size):
            try:
                commit = manifest.entry(number)
                if commit.n:
                    yield from _shard(manifest, commit, kept=number >= floor)
                if commit.n and deep and number >= floor:
                    altered = [] if is_absolute(commit.uri) else list(_digest(manifest, commit))
                    yield from altered or _records(files, commit)
                    if is_absolute(commit.uri):
                        unchecked += files.without_digest(number)
                    read += commit.bytes
            except StreamError as error:
                yield Damage(name=f"commit {number}", what=str(error))
            progress(Looked(commits=number + 1, of=size, bytes=read, unchecked=unchecked))
    finally:
        files.close()


def _segments(manifest: Manifest) -> Iterator[Damage]:
    """Every block that is compacted: its tables, and each row against its checksum and its count."""
    store = SegmentStore(manifest.store)
    try:
        for level, width in BLOCKS.items():
            for first in range(0, len(manifest), width):
                try:
                    with as_stream_error(f"cannot read the manifest segment of commit {first}"):
                        segment = store.find(level, first)
                        if segment is not None:
                            yield from _segment(manifest, segment)
                except StreamError as error:
                    yield Damage(name=f"segment of commits {first} and on", what=str(error))
    finally:
        store.close()


def _segment(manifest: Manifest, segment: Segment) -> Iterator[Damage]:
    counts = segment.counts()
    segment.sources()
    for number in range(segment.first, min(segment.first + segment.count, len(manifest))):
        segment.row(number)
        if int(counts[number - segment.first]) != manifest.n(number):
            yield Damage(name=segment.name, what=f"commit {number} has another number of records there")


def _shard(manifest: Manifest, commit: Commit, *, kept: bool) -> Iterator[Damage]:
    """Index and size of one shard."""
    name = f"commit {commit.number}"
    try:
        with as_stream_error(f"cannot read {commit.index_uri}"):
            index = decode_index(manifest.store.read(commit.index_uri), name=commit.index_uri, n=commit.n)
    except StreamError as error:
        yield Damage(name=f"{name}, {commit.index_uri}", what=str(error))
        return
    if index.adopted != is_absolute(commit.uri):
        yield Damage(name=f"{name}, {commit.index_uri}", what="it is of another kind of tar")
    if kept:
        yield from _size(manifest, commit, index, f"{name}, {commit.uri}")


def _size(manifest: Manifest, commit: Commit, index: ShardIndex, name: str) -> Iterator[Damage]:
    try:
        with as_stream_error(f"cannot open {commit.uri}"):
            file = _tar(manifest, commit)
    except (StreamError, ValueError) as error:
        yield Damage(name=name, what=str(error))
        return
    file.close()
    whole = file.size == commit.bytes == index.tar_bytes or _has_grown(manifest, commit, file.size)
    if not whole or commit.bytes != index.tar_bytes:
        yield Damage(
            name=name,
            what=f"it has {file.size} bytes; its commit says {commit.bytes}, its index {index.tar_bytes}",
        )


def _has_grown(manifest: Manifest, commit: Commit, size: int) -> bool:
    """Whether the tar is an adopted one that had this size when more of it was adopted later."""
    if not is_absolute(commit.uri) or size < commit.bytes:
        return False
    later = (manifest.entry(n) for n in range(commit.number + 1, len(manifest)) if manifest.n(n))
    return any(one.uri == commit.uri and one.bytes == size for one in later)


def _digest(manifest: Manifest, commit: Commit) -> Iterator[Damage]:
    """Every byte of a tar of our own."""
    digest = hashlib.sha256()
    with as_stream_error(f"cannot read {commit.uri}"):
        file = _tar(manifest, commit)
        try:
            for offset in range(0, file.size, _PIECE_BYTES):
                digest.update(file.read_at(offset, _PIECE_BYTES))
        finally:
            file.close()
    if digest.hexdigest() != commit.sha256:
        yield Damage(
            name=f"commit {commit.number}, {commit.uri}",
            what=f"its SHA-256 is {digest.hexdigest()}, that of what was written {commit.sha256}",
        )


def _records(files: ShardFiles, commit: Commit) -> Iterator[Damage]:
    """Every record of a tar, as a reader would see it."""
    bad = [(index, reason) for index in range(commit.n) if (reason := _trouble(files, commit.number, index))]
    if bad:
        some = ", ".join(f"{index} {reason}" for index, reason in bad[:_NAMED_RECORDS])
        yield Damage(
            name=f"commit {commit.number}, {commit.uri}",
            what=f"{len(bad)} of {commit.n} records cannot be used: {some}",
        )


def _trouble(files: ShardFiles, number: int, index: int) -> str:
    """Why a record cannot be used; empty = it can."""
    entry = files.entry(number, index)
    if entry.record is None:
        return entry.reason
    try:
        decode_image(entry.record.payload, max_pixels=_MOST_PIXELS)
    except BadRecord as bad:
        return "" if bad.reason == "too_large" else bad.reason  # how large is too large is said by the reader
    return ""


def _tar(manifest: Manifest, commit: Commit) -> Bytes:
    return open_bytes(commit.uri) if is_absolute(commit.uri) else manifest.store.open(commit.uri)
