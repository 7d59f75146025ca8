"""Reads single records out of committed shards, through their indexes.

Nothing is read but the record: one request for its members where they lie together. What is read is compared
with the index (each member's tar header says its size) and with the digest of the image, so a tar that was
changed, moved in place or cut gives no half sample and no other sample.
"""

import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from stream.errors import BadRecord, StreamDamaged, StreamPruned
from stream.record import Record, decode_label, decode_sample
from stream.shards.commits import Commit, is_absolute
from stream.shards.index import NO_DIGEST, ROW_BYTES, IndexFile, IndexRow, ShardIndex, decode_index
from stream.shards.manifest import Manifest
from stream.source import Entry
from stream.storage import Bytes, LocalBytes, as_stream_error, open_bytes
from stream.tar import BLOCK_BYTES, Member, parse_header

REASONS = ("truncated", "index_mismatch", "checksum", "too_large", "empty")
"""Why a record of a shard may be of no use: the tar ends inside it; its header is not what the index says;
its digest is not what index or JSON say; it has more bytes than the reader admits; it has none.
"""

_OPEN_SHARDS = 256
"""Tars kept open, and at most as many indexes."""
_INDEXES = 65_536
"""Indexes kept in memory, however small."""
_INDEX_BYTES = 64 * 1024 * 1024
"""Memory for indexes: of 900,000 records."""
_GAP_BYTES = 64 * 1024
"""Members of a record with no more than this between them are read at once."""
_LARGEST_TEXT = 1 << 20
"""JSON and class members with more bytes are not read, and count as unreadable."""
_UNREADABLE = b"\xff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ShardFiles:
    """The shards of one stream, the latest used kept open; one per process, not thread-safe.

    Files and indexes are kept apart: where records are read in any order from more shards than may be open,
    the indexes still are in memory, and a record costs no more than opening its tar. When all indexes do not
    fit, those of the further shards are read row by row.
    """

    def __init__(
        self, manifest: Manifest, *, verify: bool, max_record_bytes: int, scattered: bool = False
    ) -> None:
        """Open nothing yet.

        Args:
            manifest: of the stream.
            verify: compare the digest of each image.
            max_record_bytes: larger images are not read.
            scattered: records are asked for from many shards in turn, not from one after the other.
        """
        self._manifest = manifest
        self._verify = verify
        self._max_record_bytes = max_record_bytes
        self._scattered = scattered
        self._tars: OrderedDict[int, _Tar] = OrderedDict()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._index_files: OrderedDict[int, IndexFile] = OrderedDict()
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
        tar, rows = self._tar(number), self._index(number)
        with self._reading(number, tar.uri):
            row = rows.row(index)
            try:
                record = tar.read(
                    row,
                    adopted=rows.adopted,
                    verify=self._verify,
                    max_record_bytes=self._max_record_bytes,
                )
            except BadRecord as bad:
                return Entry(unit=number, index=index, record=None, reason=bad.reason, size=row.image.size)
        return Entry(unit=number, index=index, record=record, size=row.image.size)

    def label(self, number: int, index: int) -> int | str | None:
        """The label of one record of a commit; None = none that can be used. Raises as `entry`."""
        tar, rows = self._tar(number), self._index(number)
        with self._reading(number, tar.uri), contextlib.suppress(BadRecord):
            return tar.label(rows.row(index))
        return None

    def without_digest(self, number: int) -> int:
        """Records of a commit whose digest is not known. Raises as `entry`."""
        return self._index(number).without_digest

    def close(self) -> None:
        """Let go of all files and indexes."""
        for kept in (self._tars, self._index_files):
            while kept:
                kept.popitem()[1].close()
        self._indexes.clear()
        self._index_bytes = 0

    def _tar(self, number: int) -> "_Tar":
        tar = self._tars.get(number)
        if tar is None:
            commit = self._manifest.entry(number)
            with self._reading(number, commit.uri, "open"):
                tar = _Tar(commit.uri, self._file(commit.uri))
            self._tars[number] = tar
            _keep_newest(self._tars)
        self._tars.move_to_end(number)
        return tar

    def _index(self, number: int) -> "ShardIndex | IndexFile":
        kept = self._indexes if number in self._indexes else self._index_files
        if number not in kept:
            commit = self._manifest.entry(number)
            with self._reading(number, commit.index_uri, "open"):
                kept = self._take_index(commit)
        kept.move_to_end(number)
        return kept[number]

    def _take_index(self, commit: Commit) -> "OrderedDict[int, ShardIndex] | OrderedDict[int, IndexFile]":
        """Open an index; where it is now."""
        number, uri = commit.number, commit.index_uri
        if self._scattered and self._indexes and self._index_bytes + ROW_BYTES * commit.n > _INDEX_BYTES:
            # To push out another index would only make that one be read again, for one record.
            file = self._file(uri)
            try:
                index_file = IndexFile(file, name=uri, n=commit.n)
            except StreamDamaged:
                file.close()
                raise
            if not index_file.labelled:  # labels are only read with the whole index
                self._index_files[number] = index_file
                _keep_newest(self._index_files)
                return self._index_files
            index_file.close()
        index = decode_index(self._manifest.store.read(uri), name=uri, n=commit.n)
        self._indexes[number] = index
        self._index_bytes += index.nbytes
        while len(self._indexes) > 1 and (len(self._indexes) > _INDEXES or self._index_bytes > _INDEX_BYTES):
            self._index_bytes -= self._indexes.popitem(last=False)[1].nbytes
        return self._indexes

    def _file(self, uri: str) -> Bytes:
        return open_bytes(uri) if is_absolute(uri) else self._manifest.store.open(uri)

    @contextlib.contextmanager
    def _reading(self, number: int, uri: str, doing: str = "read") -> Iterator[None]:
        """Name the commit in what goes wrong."""
        where = f"commit {number} of the stream at {self._manifest.url}"
        with as_stream_error(f"cannot {doing} {uri}, {where}"):
            try:
                yield
            except FileNotFoundError as error:  # an object store opens at each read
                raise self._gone(number, error) from error
            except StreamDamaged as error:
                raise StreamDamaged(f"{where}: {error}") from error

    def _gone(self, number: int, error: FileNotFoundError) -> StreamPruned | StreamDamaged:
        """Why a file of a commit is not there."""
        where = f"commit {number} of the stream at {self._manifest.url}"
        if number < self._manifest.look_at_floor().first:
            return StreamPruned(f"{where} was pruned while it was read")
        return StreamDamaged(f"{where}: {error.filename or error} is gone; put it back")


class _Tar:
    """One tar."""

    def __init__(self, uri: str, file: Bytes) -> None:
        self.uri = uri
        self.local = isinstance(file, LocalBytes)
        self._file = file

    def read(self, row: IndexRow, *, adopted: bool, verify: bool, max_record_bytes: int) -> Record:
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
        if adopted:
            return _adopted(record, row, f"{self.uri}#{_printable(name)}", verify=verify)
        return _checked(record, row.digest) if verify else record

    def label(self, row: IndexRow) -> int | str | None:
        """The label of one record. Raises BadRecord."""
        if row.label is not None or row.label_name is not None:
            return row.label if row.label is not None else row.label_name
        texts = [member for member in (row.json, row.cls) if member and member.size <= _LARGEST_TEXT]
        found = self._read_members(texts) if texts else {}
        return decode_label(
            *(found[member][0] if member in found else None for member in (row.json, row.cls))
        )

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


def _keep_newest(files: OrderedDict[int, _Tar] | OrderedDict[int, IndexFile]) -> None:
    """Close the files that were not used for longest; one in an object store holds nothing open."""
    newest = files[next(reversed(files))]
    most = _OPEN_SHARDS if newest.local else _INDEXES
    while len(files) > most:
        files.popitem(last=False)[1].close()


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
