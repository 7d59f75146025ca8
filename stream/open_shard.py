"""One shard being written: a WebDataset tar that appears whole, with an index beside it.

It is written aside (`.part`, or a temporary file before the upload to an object store), synced, and given its
final name; only then can it be committed. The part is removed after the commit: a tar that nobody committed
can be told by the part beside it.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import webdataset

from stream.commits import Commit, NewCommit
from stream.errors import StreamError, StreamSealed
from stream.index import DIGEST_BYTES, IndexRow, encode_index
from stream.manifest import Manifest
from stream.orphans import TEMPORARY, temporary_folder
from stream.record import Record, encode_sample
from stream.storage import PART, LocalStore, explained
from stream.tar import BLOCK_BYTES, Member


class OpenShard:
    """One tar being written, with its index so far."""

    def __init__(self, manifest: Manifest, shard_id: str) -> None:
        """Begin a shard. Raises StreamError when its file cannot be made."""
        self._manifest = manifest
        self._store = manifest.store
        self._doing = f"cannot write a shard of {manifest.url}"
        self.shard_id = shard_id
        self.rows: list[IndexRow] = []
        self.payload_bytes = 0
        self._in_doubt = False
        with explained(self._doing):
            if isinstance(self._store, LocalStore):
                self._part = self._store.path(f"shards/{shard_id}.tar{PART}")
                self._store.make_folder(self._part.parent)
            else:
                self._part = temporary_folder() / f"{TEMPORARY}{shard_id}.tar{PART}"
            self._file = _Hashed(self._part)
        # encoder=False: members are bytes already. mtime is fixed, so that equal records give equal bytes.
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="")

    def encoded(self, record: Record) -> dict[str, str | bytes]:
        """The next record as a sample. Raises ValueError when it cannot be stored; nothing changes."""
        return encode_sample(record, f"{self.shard_id}-{len(self.rows):06d}-{record.sha256[:16]}")

    def append(self, record: Record, sample: Mapping[str, str | bytes]) -> None:
        """Append a record. Raises StreamError; the shard is of no use then."""
        at = self._tar.tarstream.offset
        members: dict[str, Member] = {}
        for name in sorted(sample.keys() - {"__key__"}):  # the order in which TarWriter writes
            members[name] = Member(at + BLOCK_BYTES, len(sample[name]))
            at += BLOCK_BYTES + -(-len(sample[name]) // BLOCK_BYTES) * BLOCK_BYTES
        with explained(self._doing):
            self._tar.write(sample)
        if self._tar.tarstream.offset != at:
            raise StreamError("this version of webdataset writes another form of tar than the index assumes")
        json_at, cls_at = members.pop("json"), members.pop("cls", None)
        ((extension, image),) = members.items()
        digest = bytes.fromhex(record.sha256)[:DIGEST_BYTES]
        self.rows.append(IndexRow(image=image, extension=extension, json=json_at, cls=cls_at, digest=digest))
        self.payload_bytes += len(record.payload)

    def commit(self, new: NewCommit) -> Commit:
        """Finish the tar, give it its name, and commit it.

        Args:
            new: source, position and accounts; the rest is filled in here.

        Raises:
            StreamSealed: the stream has its end; the shard is removed.
            StreamError: it cannot be written or committed.
        """
        uri, index_uri = f"shards/{self.shard_id}.tar", f"index/{self.shard_id}.idx"
        try:
            with explained(self._doing):
                self._tar.close()
                size, digest = self._file.finish()
                self._store.upload(self._part, uri)
                self._store.create(index_uri, encode_index(self.rows, tar_bytes=size, adopted=False))
        except StreamError:
            self._remove(uri, index_uri)
            raise
        whole = replace(new, n=len(self.rows), uri=uri, index_uri=index_uri, bytes=size, sha256=digest)
        try:
            commit = self._manifest.commit(whole)
        except StreamSealed:
            self._remove(uri, index_uri)
            raise
        except StreamError:
            # Whether the commit stands is not known: the tar stays, and its part, for the sweep to look into.
            self._in_doubt = isinstance(self._store, LocalStore)
            raise
        self.discard()
        return commit

    def discard(self) -> None:
        """Leave nothing behind but what is, or may be, committed. May be called twice."""
        self._file.close()
        self._tar.close()  # or it would try to when it is collected
        if not self._in_doubt:
            self._part.unlink(missing_ok=True)

    def _remove(self, uri: str, index_uri: str) -> None:
        self.discard()
        with contextlib.suppress(OSError):  # what stays is named by nobody
            self._store.delete(uri)
            self._store.delete(index_uri)


class _Hashed:
    """A new file that knows the digest of what was written; locked, so that others see its writer lives."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = path.open("xb")
        with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        """Append; nothing happens after `close`."""
        if self._file is None:
            return len(data)
        self._digest.update(data)
        self._size += len(data)
        return self._file.write(data)

    def finish(self) -> tuple[int, str]:
        """Make it durable; its size and hex digest."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._size, self._digest.hexdigest()

    def close(self) -> None:
        """Let go, whether or not the last bytes can still be written."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
