"""Writes records into shards and commits them, with the position of their source and its accounts.

What was not committed was not written: a writer that dies loses its open shard and nothing else, and its
source goes on from the position of the last commit.

A shard is a WebDataset tar that appears whole, with an index beside it. It is written aside (`.part`, or a
temporary file before the upload to an object store), synced, and given its final name; only then can it be
committed. The part is removed after the commit: a tar that was not committed is known by the part beside it.
"""

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import webdataset

from stream.config import ShardConfig
from stream.errors import StreamError, StreamSealed
from stream.record import Record, encode_sample
from stream.shards.commits import Accounts, Commit, NewCommit, new_shard_id
from stream.shards.index import DIGEST_BYTES, IndexRow, encode_index
from stream.shards.manifest import Manifest
from stream.shards.orphans import TEMPORARY, sweep_orphans, temporary_folder
from stream.storage import PART, LocalStore, as_stream_error, try_lock
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
        with as_stream_error(self._doing):
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
        with as_stream_error(self._doing):
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
            with as_stream_error(self._doing):
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
        with contextlib.suppress(OSError):  # no commit names what stays
            self._store.delete(uri)
            self._store.delete(index_uri)


class _Hashed:
    """A new file that knows the digest of what was written; locked, so that others see its writer lives."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = path.open("xb")
        try_lock(self._file)  # on a file system without locks nothing is swept
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


class ShardWriter:
    """Puts records into shards and commits each shard whole; one per source and process, not thread-safe.

    Every method that commits may block on disk or network, with no limit of its own. After any exception but
    ValueError the open shard is lost (not half of it kept): the writer must be left, and the source taken up
    from its last commit.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        source_id: str,
        config: ShardConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        shard_ids: Callable[[], str] = new_shard_id,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        """Get ready to write; what writers that died left unfinished is swept away.

        Args:
            manifest: of the stream that is written.
            source_id: names the source, for going on later.
            config: when a shard is closed.
            clock: monotonic seconds.
            shard_ids: gives a new name each time; the bytes of a shard follow from its name and its records.
            before_commit: makes safe what the position of a commit speaks of; may raise OSError.

        Raises:
            StreamSealed: the stream has its end.
        """
        if manifest.sealed:
            raise StreamSealed(f"the stream at {manifest.url} is sealed: write to another one")
        self._manifest = manifest
        self._source_id = source_id
        self._config = config or ShardConfig()
        self._clock = clock
        self._shard_ids = shard_ids
        self._before_commit = before_commit
        self._shard: OpenShard | None = None
        self._skipped: Counter[str] = Counter()
        self._position: Any = None
        self._since: float | None = None  # when the oldest thing that waits for a commit came
        self._closed = False
        self._broken = False
        self.accounts = Accounts()
        """Of everything that this writer committed (`Manifest.accounts_of` has earlier runs too)."""
        self.shards = 0
        """Commits with records that this writer made."""
        sweep_orphans(manifest)

    def write(self, record: Record, source_position: Any) -> None:
        """Add a record to the open shard, and commit the shard when it is full or old.

        Args:
            record: with its SHA-256.
            source_position: JSON value, not changed afterwards: the position in the source after this record.

        Raises:
            StreamSealed: a process gave the stream its end; the open shard is not part of it.
            StreamError: the shard cannot be written.
            ValueError: the record cannot be stored.
        """
        self._check_open()
        if self._shard is None:
            self._shard = OpenShard(self._manifest, self._shard_ids())
        shard = self._shard
        sample = shard.encoded(record)
        # From here to the last line an interrupt must not leave a record without its position.
        self._broken = True
        shard.append(record, sample)
        self._noted(source_position)
        self._broken = False
        if len(shard.rows) >= self._config.max_records or shard.payload_bytes >= self._config.max_bytes:
            self.flush()
        else:
            self.tick()

    def skip(self, reason: str, source_position: Any) -> None:
        """Account for a file that was found and not written; committed with the next shard, or when old."""
        self._check_open()
        self._broken = True
        self._skipped[reason] += 1
        self._noted(source_position)
        self._broken = False
        self.tick()

    def tick(self) -> None:
        """Commit what is older than `max_age_s`; to be called now and then while a source has nothing."""
        if self._since is not None and self._clock() - self._since >= self._config.max_age_s:
            self.flush()

    def flush(self) -> None:
        """Commit what is open: a shard, or a commit without records when only skips wait.

        Raises:
            StreamSealed, StreamError: as `write`.
        """
        if self._since is None:
            return
        self._broken = True
        if self._before_commit is not None:
            self._before_commit()
        shard = self._shard if self._shard is not None and self._shard.rows else None
        accounts = Accounts(
            written=len(shard.rows) if shard else 0,
            skipped=dict(sorted(self._skipped.items())),
            bytes=shard.payload_bytes if shard else 0,
        )
        new = NewCommit(n=0, source_id=self._source_id, source_position=self._position, accounts=accounts)
        if shard is None:
            self._manifest.commit(new)
        else:
            shard.commit(new)
            self._shard = None
            self.shards += 1
        self.accounts = self.accounts + accounts
        self._skipped.clear()
        self._since = None
        self._broken = False

    def close(self) -> None:
        """Commit what is open and let go. May be called twice.

        After a call that was interrupted or failed nothing is committed: what was open is abandoned.
        """
        if self._closed:
            return
        if self._broken:
            self.abandon()
        else:
            self.flush()
            self.abandon()

    def abandon(self) -> None:
        """Let go without committing what is open."""
        self._closed = True
        self._since = None
        self._skipped.clear()
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; on an exception, abandon."""
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _noted(self, source_position: Any) -> None:
        self._position = source_position
        if self._since is None:
            self._since = self._clock()

    def _check_open(self) -> None:
        if self._closed or self._broken:
            raise ValueError("this shard writer is closed, or a call of it failed: make a new one")
