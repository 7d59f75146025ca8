"""A stream of shards as the destination of an ingest; kafka_destination.py has the Kafka topic.

Content that the stream has already is a duplicate, whoever wrote it and whenever; it is not written again.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ingest.config import IngestConfig
from ingest.errors import DestinationFailed, DestinationFull, SourceBusy
from ingest.rejects import Listed, Reject, open_list
from ingest.sources import labels_of, parent_of
from stream.errors import StreamError, StreamSealed
from stream.record import Record
from stream.shards.adopt import AdoptedTars, Adoption, AdoptOptions, Label, commit_tar, index_tar
from stream.shards.commits import Accounts
from stream.shards.digests import DigestSet, known_digests
from stream.shards.index import read_digests
from stream.shards.manifest import Manifest
from stream.shards.retention import Retention
from stream.shards.taken import TakenList
from stream.shards.writer import ShardWriter
from stream.storage import NO_ROOM, LocalStore, Store, as_stream_error, is_locked, open_lock, try_lock
from stream.tar_samples import TarImage


class Duplicates:
    """What the stream has, by the digest of the stored bytes; one per ingest, not thread-safe.

    Shards that other writers commit meanwhile are taken in by `catch_up`. Two writers that bring the same
    image within one shard's time both write it: neither can know.
    """

    def __init__(self, manifest: Manifest, *, source_id: str) -> None:
        """Read the digests of everything that is committed: 16 bytes a record."""
        self._manifest = manifest
        self._source_id = source_id
        self._known: DigestSet = known_digests(manifest)
        self._seen_commits = len(manifest)

    def add(self, sha256: str) -> bool:
        """Whether this content is new; it is known from now on."""
        digest = bytes.fromhex(sha256)
        if digest in self._known:
            return False
        self._known.add(digest)
        return True

    def catch_up(self) -> None:
        """Take in what others committed since; reads their index sidecars. Raises StreamError."""
        manifest = self._manifest
        for number in range(self._seen_commits, len(manifest)):
            commit = manifest.entry(number)
            if commit.n == 0 or commit.source_id == self._source_id:
                continue
            with as_stream_error(f"cannot read {commit.index_uri} of the stream at {manifest.url}"):
                file = manifest.store.open(commit.index_uri)
                try:
                    self._known.add_many(read_digests(file, name=commit.index_uri, n=commit.n))
                finally:
                    file.close()
        self._seen_commits = len(manifest)


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """How far a source has come in this destination."""

    position: Any = None
    """JSON value given with the last thing that is safe; None when there is none."""
    accounts: Accounts = Accounts()  # noqa: RUF009  frozen
    ended_in_shard: bool = False
    """Whether the last commit brought records: it is not counted in what its own position says of shards."""


class Destination(Protocol):
    """Something that takes the records of one source in order and keeps their accounts; not thread-safe.

    Every method may block on disk or network. What `write` and `skip` were given is safe when `close` has
    returned, or earlier; a crash loses only a tail of it, and `resume` says where that begins.
    """

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def shards(self) -> int:
        """Shards made safe by this object."""
        ...

    @property
    def pending(self) -> Accounts:
        """Of what was written, that which may still be lost and so is not to be reported as written."""
        ...

    def resume(self) -> Resume:
        """What earlier runs on this source have made safe."""
        ...

    @property
    def sealed(self) -> bool:
        """Whether nothing can be written any more."""
        ...

    @property
    def taken(self) -> TakenList | None:
        """The list of what was taken from sources; None where there is no place for it."""
        ...

    def place_of(self, source_id: str) -> Any:
        """The position of a source after what is safe; None when there is none."""
        ...

    def at_work(self, source_id: str) -> bool:
        """Whether another process ingests this source now, as far as this can be seen."""
        ...

    def as_ingest_error(self) -> contextlib.AbstractContextManager[None]:
        """Turns what a file system refuses into an error that says what to do."""
        ...

    def is_new(self, sha256: str) -> bool:
        """Whether this content is not there yet; from now on it counts as there."""
        ...

    def write(self, record: Record, position: Any) -> None:
        """Add a record; `position` is the place in the source after it.

        Raises:
            BadRecord: it cannot be stored here; nothing was written.
        """
        ...

    def skip(self, reason: str, position: Any) -> None:
        """Account for something found and not written."""
        ...

    def reject(self, reject: Reject) -> None:
        """Put something on the list of what is not written; to be called before `skip` accounts for it."""
        ...

    @property
    def listed(self) -> Listed | None:
        """How far that list goes, to be saved with the next position; None where there is no list."""
        ...

    def flush(self) -> None:
        """Make safe what is open."""
        ...

    def adopt(self, tar: str, position: Callable[[Adoption], Any]) -> Accounts:
        """Take over a tar where it is; what became of its images. Only after `flush`.

        Args:
            tar: its absolute path.
            position: gives the place in the source after it, from what was found in it; called before it is
                committed, and may `reject`.
        """
        ...

    def tick(self) -> None:
        """Called now and then while nothing comes."""
        ...

    def held_up(self) -> str:
        """Why nothing more shall be brought now, for people; empty when it may. To be asked often."""
        ...

    def seal(self) -> None:
        """Give the stream its end."""
        ...

    def close(self) -> None:
        """Make safe what is open, and let go. May be called twice."""
        ...

    def abandon(self) -> None:
        """Let go without making safe what is open. May be called twice."""
        ...


class ShardDestination:
    """A stream of shards. One process at a time writes one source; others may write other sources.

    Raises, from every method: DestinationFull, DestinationFailed, StreamSealed, StreamDamaged.
    """

    def __init__(self, url: str, source_id: str, config: IngestConfig) -> None:
        """Open the stream, or make an empty one. Raises SourceBusy too."""
        self._url = url
        self._source_id = source_id
        self._config = config
        self._writer: ShardWriter | None = None
        self._duplicates: Duplicates | None = None
        self._adopted = 0
        with self.as_ingest_error():
            self._manifest = Manifest.open(url, create=True)
        self._adopted_tars = AdoptedTars(self._manifest)
        self._retention = Retention(self._manifest, config.retention)
        self._rejects = open_list(self._manifest.store, source_id)
        self._taken = TakenList(self._manifest.store)
        self._lock = lock_source(self._manifest.store, source_id)

    @property
    def url(self) -> str:
        """See Destination."""
        return self._url

    @property
    def sealed(self) -> bool:
        """See Destination."""
        return self._manifest.sealed

    @property
    def shards(self) -> int:
        """See Destination."""
        return self._adopted + (self._writer.shards if self._writer else 0)

    @property
    def pending(self) -> Accounts:
        """See Destination. An open shard is reported as written: it is committed before an ingest ends."""
        return Accounts()

    def resume(self) -> Resume:
        """See Destination."""
        with self.as_ingest_error():
            self._manifest.refresh()
            last = self._manifest.last_of(self._source_id)
            if not self._manifest.sealed:  # nothing is written then, and readers cut the list themselves
                self._resume_rejects(None if last is None else last.source_position)
            if last is None:
                return Resume()
            return Resume(
                position=last.source_position,
                accounts=self._manifest.accounts_of(self._source_id),
                ended_in_shard=last.n > 0,
            )

    @property
    def taken(self) -> TakenList:
        """See Destination: beside the shards."""
        return self._taken

    def place_of(self, source_id: str) -> Any:
        """See Destination."""
        with self.as_ingest_error():
            last = self._manifest.last_of(source_id)
        position = last.source_position if last is not None else None
        return position.get("source") if isinstance(position, dict) else None

    def at_work(self, source_id: str) -> bool:
        """See Destination: in a local folder, by its lock."""
        return is_source_locked(self._manifest.store, source_id)

    def is_new(self, sha256: str) -> bool:
        """See Destination."""
        if self._duplicates is None:
            with self.as_ingest_error():
                self._duplicates = Duplicates(self._manifest, source_id=self._source_id)
        return self._duplicates.add(sha256)

    def write(self, record: Record, position: Any) -> None:
        """See Destination."""
        with self.as_ingest_error():
            writer = self._open_writer()
            before = writer.shards
            writer.write(record, position)
            self._retention.tick()
            if self._duplicates is not None and writer.shards != before:
                self._duplicates.catch_up()

    def skip(self, reason: str, position: Any) -> None:
        """See Destination."""
        with self.as_ingest_error():
            self._open_writer().skip(reason, position)

    def reject(self, reject: Reject) -> None:
        """See Destination."""
        with self.as_ingest_error():
            self._rejects.add(reject)

    @property
    def listed(self) -> Listed | None:
        """See Destination."""
        return self._rejects.listed

    def flush(self) -> None:
        """See Destination."""
        if self._writer is not None:
            with self.as_ingest_error():
                self._writer.flush()

    def adopt(self, tar: str, position: Callable[[Adoption], Any]) -> Accounts:
        """See Destination."""
        config = self._config
        options = AdoptOptions(
            max_bytes=config.max_bytes,
            digests=config.digests,
            label=self._label,
            keep_labels=config.label_from == "parent",
            is_new=None if config.keep_duplicates or not config.digests else self.is_new,
        )
        with self.as_ingest_error():
            adoption = index_tar(self._manifest, tar, options, self._adopted_tars)
            place = position(adoption)
            self._rejects.flush()
            commit = commit_tar(self._manifest, adoption, source_id=self._source_id, source_position=place)
            self._adopted += commit.n > 0
            self._retention.tick()
            if self._duplicates is not None:
                self._duplicates.catch_up()
            return commit.accounts

    def _label(self, image: TarImage) -> Label:
        labels = labels_of(image.cls, image.json, parent_of(image.name), self._config.label_from)
        return labels.label, labels.label_name, labels.bad

    def tick(self) -> None:
        """See Destination."""
        with self.as_ingest_error():
            if self._writer is not None:
                self._writer.tick()
            self._retention.tick()

    def held_up(self) -> str:
        """See Destination; a run that is too far behind holds an ingest up."""
        with self.as_ingest_error():
            ahead = self._retention.ahead_of()
        if ahead is None:
            return ""
        reader, unread = ahead
        return f"run {reader.run[:8]} ({reader.where}) has {unread:,} records unread"

    def seal(self) -> None:
        """See Destination."""
        with self.as_ingest_error():
            self._manifest.seal()

    def close(self) -> None:
        """See Destination."""
        try:
            if self._writer is not None:
                with self.as_ingest_error():
                    self._writer.close()
            self._retention.tick(last=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """See Destination."""
        if self._writer is not None:
            self._writer.abandon()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _open_writer(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(
                self._manifest,
                source_id=self._source_id,
                config=self._config.shard,
                before_commit=self._rejects.flush,
            )
        return self._writer

    def _resume_rejects(self, position: Any) -> None:
        missing = self._rejects.resume(Listed.of(position) or Listed())
        if missing:
            logger.warning(
                "%s lines are gone from the list of what this source had rejected (%s/rejects); it goes on "
                "without them", f"{missing:,}", self.url,
            )  # fmt: skip

    def as_ingest_error(self) -> contextlib.AbstractContextManager[None]:
        """See Destination."""
        return destination_errors(f"the stream at {self.url}")


@contextlib.contextmanager
def destination_errors(place: str) -> Iterator[None]:
    """Say what to do when there is no room, or another trouble, at a place that is written."""
    try:
        yield
    except StreamSealed:
        raise
    except (StreamError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise DestinationFull(
                f"no room is left for {place} ({cause.strerror}): make room and run the same command "
                "again; it goes on where it was"
            ) from error
        if isinstance(error, OSError):
            raise DestinationFailed(f"cannot write {place}: {error}") from error
        raise


def lock_source(store: Store, source_id: str) -> int:
    """Keep a second ingest of a source out, where the file system can; locks die with a process.

    Returns:
        The file to close for letting go; -1 where there is no lock.

    Raises:
        SourceBusy: another one is at work.
    """
    if not isinstance(store, LocalStore):
        return -1
    path = _lock_path(store, source_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open_lock(path)
    except OSError:  # for example a read-only stream, whose finished ingest may be asked for its accounts
        return -1
    locked = try_lock(handle)
    if not locked:
        os.close(handle)
    if locked is False:
        raise SourceBusy(
            f"another ingest of the same source ({source_id}) writes to {store.url}: wait for it"
        )
    return handle if locked else -1


def is_source_locked(store: Store, source_id: str) -> bool:
    """Whether another process has the lock of a source; False where there are no locks."""
    if not isinstance(store, LocalStore):
        return False
    with contextlib.suppress(OSError):  # as of a stream of another user
        return is_locked(_lock_path(store, source_id))
    return False


def _lock_path(store: LocalStore, source_id: str) -> Path:
    name = hashlib.sha256(source_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return store.path(f"locks/{name}.lock")
