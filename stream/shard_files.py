"""Reads single records out of committed shards, through their indexes.

Nothing is read but the record: one request for its members where they lie together. What is read is compared
with the index (each member's tar header says its size) and with the digest of the image, so a tar that was
changed, moved in place or cut gives no half sample and no other sample.
"""

import hashlib
import re
from collections import OrderedDict
from dataclasses import replace

from stream.commits import Commit, is_absolute
from stream.errors import BadRecord, StreamDamaged, StreamPruned
from stream.index import NO_DIGEST, IndexRow, Member, ShardIndex, decode_index
from stream.manifest import Manifest
from stream.record import Record, decode_sample
from stream.source import Entry
from stream.store import Bytes, explained, open_bytes
from stream.tars import BLOCK_BYTES, parse_header

REASONS = ("truncated", "index_mismatch", "checksum", "too_large", "empty")
"""Why a record of a shard may be of no use: the tar ends inside it; its header is not what the index says;
its digest is not what index or JSON say; it has more bytes than the reader admits; it has none.
"""

_OPEN_SHARDS = 256
"""Tars kept open."""
_INDEX_BYTES = 64 * 1024 * 1024
"""Memory for the indexes of open shards."""
_GAP_BYTES = 64 * 1024
"""Members of a record with no more than this between them are read at once."""
_LARGEST_TEXT = 1 << 20
"""JSON and class members with more bytes are not read, and count as unreadable."""
_UNREADABLE = b"\xff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ShardFiles:
    """The shards of one stream, the latest used kept open; one per process, not thread-safe."""

    def __init__(self, manifest: Manifest, *, verify: bool, max_record_bytes: int) -> None:
        """Open nothing yet.

        Args:
            manifest: of the stream.
            verify: compare the digest of each image.
            max_record_bytes: larger images are not read.
        """
        self._manifest = manifest
        self._verify = verify
        self._max_record_bytes = max_record_bytes
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._index_bytes = 0

    def entry(self, number: int, index: int) -> Entry:
        """Read one record of a commit.

        Args:
            number: of the commit.
            index: of the record in it.

        Raises:
            StreamPruned: the shard was pruned.
            StreamDamaged: the shard or its index is gone, or the index cannot be trusted.
            StreamError: they cannot be read.
        """
        shard = self._shard(number)
        row = shard.index.row(index)
        try:
            with explained(f"cannot read {shard.uri}, commit {number} of the stream at {self._manifest.url}"):
                try:
                    record = shard.read(row, verify=self._verify, max_record_bytes=self._max_record_bytes)
                except FileNotFoundError as error:  # an object store opens at each read
                    raise self._gone(number, error) from error
        except BadRecord as bad:
            return Entry(unit=number, index=index, record=None, reason=bad.reason, size=row.image.size)
        return Entry(unit=number, index=index, record=record, size=row.image.size)

    def without_digest(self, number: int) -> int:
        """Records of a commit whose digest is not known. Raises as `entry`."""
        return self._shard(number).index.without_digest

    def close(self) -> None:
        """Let go of all files."""
        while self._shards:
            self._shards.popitem()[1].close()
        self._index_bytes = 0

    def _shard(self, number: int) -> "_Shard":
        shard = self._shards.get(number)
        if shard is None:
            shard = self._open(self._manifest.entry(number))
            self._shards[number] = shard
            self._index_bytes += shard.index.nbytes
            while len(self._shards) > 1 and (
                len(self._shards) > _OPEN_SHARDS or self._index_bytes > _INDEX_BYTES
            ):
                _, old = self._shards.popitem(last=False)
                self._index_bytes -= old.index.nbytes
                old.close()
        self._shards.move_to_end(number)
        return shard

    def _open(self, commit: Commit) -> "_Shard":
        store = self._manifest.store
        where = f"commit {commit.number} of the stream at {self._manifest.url}"
        with explained(f"cannot open {commit.uri}, {where}"):
            try:
                index = decode_index(store.read(commit.index_uri), name=commit.index_uri, n=commit.n)
                file = open_bytes(commit.uri) if is_absolute(commit.uri) else store.open(commit.uri)
            except FileNotFoundError as error:
                raise self._gone(commit.number, error) from error
            except StreamDamaged as error:
                raise StreamDamaged(f"{where}: {error}") from error
        return _Shard(commit.uri, index, file)

    def _gone(self, number: int, error: FileNotFoundError) -> StreamPruned | StreamDamaged:
        """Why a file of a commit is not there."""
        where = f"commit {number} of the stream at {self._manifest.url}"
        if number < self._manifest.look_at_floor().first:
            return StreamPruned(f"{where} was pruned while it was read")
        return StreamDamaged(f"{where}: {error.filename or error} is gone; put it back")


class _Shard:
    """One tar and its index."""

    def __init__(self, uri: str, index: ShardIndex, file: Bytes) -> None:
        self.uri = uri
        self.index = index
        self._file = file

    def read(self, row: IndexRow, *, verify: bool, max_record_bytes: int) -> Record:
        """One record. Raises BadRecord with one of REASONS."""
        if row.image.size > max_record_bytes:
            raise BadRecord("too_large", f"{row.image.size} bytes")
        texts = [member for member in (row.json, row.cls) if member and member.size <= _LARGEST_TEXT]
        found = self._read_members([row.image, *texts])
        image, name = found[row.image]
        record = decode_sample(
            image,
            row.extension,
            found.get(row.json, (_UNREADABLE, ""))[0] if row.json else None,
            found.get(row.cls, (_UNREADABLE, ""))[0] if row.cls else None,
        )
        if self.index.adopted:
            return _adopted(record, row, f"{self.uri}#{_printable(name)}", verify=verify)
        return _checked(record, row.digest) if verify else record

    def _read_members(self, members: list[Member]) -> dict[Member, tuple[bytes, str]]:
        """Bytes and stated name of each member."""
        start = min(member.offset for member in members) - BLOCK_BYTES
        stop = max(member.offset + member.size for member in members)
        wanted = sum(member.size + 2 * BLOCK_BYTES for member in members)
        if len(members) > 1 and stop - start > wanted + _GAP_BYTES:
            return {member: self._read_members([member])[member] for member in members}
        data = memoryview(self._file.read_at(start, stop - start))
        if len(data) < stop - start:
            raise BadRecord("truncated", f"{self.uri} ends at {start + len(data)}")
        found: dict[Member, tuple[bytes, str]] = {}
        for member in members:
            at = member.offset - start
            header = parse_header(bytes(data[at - BLOCK_BYTES : at]))
            if header is None or header.size != member.size:
                raise BadRecord(
                    "index_mismatch", f"{self.uri} has no member of {member.size} bytes at {member.offset}"
                )
            found[member] = (bytes(data[at : at + member.size]), header.name)
        return found

    def close(self) -> None:
        """Let go of the tar."""
        self._file.close()


def _checked(record: Record, digest: bytes) -> Record:
    """A record of our own writer, with its identity made sure of."""
    own = hashlib.sha256(record.payload)
    found = own.hexdigest()
    if record.sha256 not in ("", found) or (digest != NO_DIGEST and own.digest()[: len(digest)] != digest):
        raise BadRecord("checksum", f"stated {record.sha256}, found {found}")
    # Where the JSON could not be read, the index still vouches for the image.
    return record if record.sha256 else replace(record, sha256=found)


def _adopted(record: Record, row: IndexRow, source: str, *, verify: bool) -> Record:
    """A record of a foreign tar, whose JSON may state the digest of a download that was resized later."""
    sha256 = ""
    if verify and (record.sha256 or row.digest != NO_DIGEST):
        own = hashlib.sha256(record.payload)
        if row.digest not in (NO_DIGEST, own.digest()[: len(row.digest)]):
            raise BadRecord("checksum", f"the image is not the one that was adopted: found {own.hexdigest()}")
        known = row.digest != NO_DIGEST or record.sha256 == own.hexdigest()
        sha256 = own.hexdigest() if known else ""
    record = replace(record, sha256=sha256, source=record.source or source)
    if row.label is None and row.label_name is None:
        return record
    return replace(record, label=row.label, label_name=row.label_name, bad_label=False)


def _printable(name: str) -> str:
    """A name of a tar as provenance: no control characters, no bytes that are no text."""
    return _CONTROL.sub("?", name.encode("utf-8", "replace").decode("utf-8"))
