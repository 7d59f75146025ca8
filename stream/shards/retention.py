"""Retention: old shards leave, but never one that a registered run still needs; and a writer that waits.

What a prune does, in this order, so that it may be killed anywhere: the floor is raised; whoever registered
meanwhile is looked for once more, and the floor lowered again for them; then tars are removed, and how far
that came is noted. Index sidecars stay (72 bytes a record): they hold the digests by which an image that was
pruned is still known as a duplicate. Adopted tars are never removed, only no longer read.

A store in the cloud has no locks: let one process at a time prune there.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream.config import RetentionConfig
from stream.errors import StreamDamaged, StreamError
from stream.shards.commits import Commit, is_absolute
from stream.shards.low_watermark import Floor, write_floor
from stream.shards.manifest import Manifest
from stream.shards.readers import FOLDER, ReaderRecord, forget_reader, read_readers, seen_ago
from stream.storage import LocalStore, as_stream_error, open_lock, try_lock

_NOTED_EVERY = 1000
"""Tars between two notes of how far removing has come."""
_PRUNE_S = 10.0
"""Seconds between two looks of a writer for what has become too old."""
_SHARE = 20.0
"""So many times as long as a prune took, no other one follows."""
_LOOK_S = 0.5
"""Seconds between two looks of a waiting writer at who reads."""
_FRESH_S = 30.0
"""A run that has not written its entry for so long is not believed that it waits for records; runs write
every ten seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What a prune came to."""

    commits: int
    """Commits that are no longer read."""
    records: int
    """Their records."""
    shards: int
    """Tars that were removed."""
    bytes: int
    """Their bytes."""
    first: int
    """First commit that is kept now."""
    held_by: ReaderRecord | None = None
    """The run for which more stayed than the limits ask for; None when no run held anything."""


def prune(manifest: Manifest, limits: RetentionConfig, *, dry_run: bool = False) -> Pruned:
    """Let the oldest shards go, as far as the limits ask for and registered runs allow.

    What an earlier prune left undone is finished, also without limits.

    Args:
        manifest: of the stream.
        limits: `keep_hours` and `keep_bytes`.
        dry_run: change nothing; what would go is what comes back.

    Raises:
        StreamError: another prune is at work, or the store cannot be read or written.
        StreamDamaged: the manifest, or who reads, cannot be trusted; nothing was removed.
    """
    with _only_one(manifest):
        manifest.refresh()
        old = manifest.look_at_floor()
        wanted = past_limits(manifest, limits, now=time.time())
        target, held_by = _held(old, wanted, read_readers(manifest.store))
        if dry_run:
            return _told(manifest, old, target, held_by, list(_tars(manifest, old.swept, target)))
        with as_stream_error(f"cannot prune the stream at {manifest.url}"):
            if target > old.first:
                _put(manifest, target, old.swept)
                lower, late = _held(old, target, read_readers(manifest.store))
                if late is not None:  # registered in between: nothing of it is gone yet
                    target, held_by = lower, late
                    _put(manifest, target, old.swept)
            gone = _remove(manifest, old.swept, target)
    return _told(manifest, old, target, held_by, gone)


def past_limits(manifest: Manifest, limits: RetentionConfig, *, now: float) -> int:
    """The first commit that the limits keep; reads the commits that are kept.

    Args:
        manifest: of the stream.
        limits: `keep_hours` and `keep_bytes`.
        now: seconds since 1970.
    """
    first, size = manifest.floor.first, len(manifest)
    if limits.keep_hours:
        oldest = now - 3600.0 * limits.keep_hours
        while first < size and manifest.entry(first).created < oldest:
            first += 1
    if limits.keep_bytes:
        # The newest shards that fit; from the end, so that no more is read than stays.
        kept, at = 0, size
        while at > first:
            kept += _own_bytes(manifest.entry(at - 1))
            if kept > limits.keep_bytes:
                break
            at -= 1
        first = at
    return first


def unread_by(manifest: Manifest, reader: ReaderRecord) -> int:
    """Committed records that a run has not used yet, as far as it has reported."""
    begin = manifest.before(min(reader.begin, len(manifest)))
    return max(0, manifest.records - begin - reader.used)


class Retention:
    """What a writer does for retention; one per ingest, not thread-safe.

    Trouble with pruning is a warning: it never ends an ingest.
    """

    def __init__(
        self, manifest: Manifest, config: RetentionConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Do nothing yet.

        Args:
            manifest: of the stream that is written.
            config: limits.
            clock: monotonic seconds.
        """
        self._manifest, self._config, self._clock = manifest, config, clock
        self._next_prune = self._next_look = -1e9
        self._readers: list[ReaderRecord] = []
        self._news: dict[
            str, tuple[ReaderRecord, float]
        ] = {}  # entry of a run, and when it was first seen so
        self._warned = False

    def tick(self, *, last: bool = False) -> None:
        """Prune, if the last time was ten seconds ago or more, or it is the `last` one; may block on I/O."""
        config = self._config
        early = self._clock() < self._next_prune and not last
        if early or not (config.keep_hours or config.keep_bytes):
            return
        began = self._clock()
        try:
            prune(self._manifest, config)
        except StreamError as error:
            if not self._warned:
                _log.warning("cannot prune the stream at %s: %s", self._manifest.url, error)
            self._warned = True
        else:
            self._warned = False
        # `keep_bytes` looks at every commit that is kept: of a million that must not be all it does.
        self._next_prune = self._clock() + max(_PRUNE_S, _SHARE * (self._clock() - began))

    def ahead_of(self) -> tuple[ReaderRecord, int] | None:
        """The slowest run and what it has unread, while that is too much; None when more may be brought.

        A run that waits for records holds no writer up, however much it has unread: on a stream that is read
        in windows of commits it may have all of it before it, and still need more. Looks at most twice a
        second.
        """
        if not self._config.max_ahead:
            return None
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + _LOOK_S
            self._manifest.refresh()
            self._readers = read_readers(self._manifest.store)
        unread = [(unread_by(self._manifest, one), one) for one in self._readers if not self._waits(one)]
        most, slowest = max(unread, key=lambda pair: pair[0], default=(0, None))
        return (slowest, most) if slowest is not None and most > self._config.max_ahead else None

    def _waits(self, reader: ReaderRecord) -> bool:
        """Whether a run says that it waits for records, and lives."""
        known, since = self._news.get(reader.run, (None, 0.0))
        if known != reader:
            since = self._clock()
            self._news[reader.run] = (reader, since)
        return reader.waiting and self._clock() - since < _FRESH_S


def forget(manifest: Manifest, run: str, *, live_s: float = 0.0) -> str:
    """Take a run out of the register, by its name or the unique beginning of it.

    Args:
        manifest: of the stream.
        run: name of the run.
        live_s: a run that was seen in the last so many seconds is not forgotten.

    Returns:
        Its whole name.

    Raises:
        ValueError: no run of this name, several, or one that is alive.
        StreamError: the store cannot be read or written.
    """
    with as_stream_error(f"cannot read who reads the stream at {manifest.url}"):
        names = [name.removesuffix(".json") for name in manifest.store.names(FOLDER)]
    found = [name for name in names if name == run] or [name for name in names if name.startswith(run)]
    if not run or len(found) != 1:
        raise ValueError(
            f"{len(found)} runs of this stream have a name that begins with {run!r}: "
            "`swavstream stream show STREAM` lists them"
        )
    readers: list[ReaderRecord] = []
    with contextlib.suppress(StreamDamaged):  # an entry that cannot be read can still be taken out
        readers = read_readers(manifest.store) if live_s else []
    alive = [one for one in readers if one.run == found[0] and seen_ago(one) < live_s]
    if alive:
        raise ValueError(
            f"run {found[0]} was seen {seen_ago(alive[0]):.0f} s ago ({alive[0].where}): stop it first, or "
            "give --force if it will never come back"
        )
    forget_reader(manifest.store, found[0])
    return found[0]


def _held(old: Floor, wanted: int, readers: Sequence[ReaderRecord]) -> tuple[int, ReaderRecord | None]:
    """How far may be pruned, and which run keeps it from going to `wanted`."""
    slowest = min(readers, key=lambda reader: reader.first, default=None)
    if slowest is None or slowest.first >= wanted:
        return wanted, None
    return max(slowest.first, old.first), slowest


def _put(manifest: Manifest, first: int, swept: int) -> None:
    write_floor(manifest.store, Floor(first=first, records=manifest.before(first), swept=swept))
    manifest.look_at_floor()


def _remove(manifest: Manifest, swept: int, first: int) -> list[Commit]:
    """Remove the tars below the floor that are still there, noting now and then how far it came."""
    gone: list[Commit] = []
    for commit in _tars(manifest, swept, first):
        manifest.store.delete(commit.uri)
        gone.append(commit)
        if len(gone) % _NOTED_EVERY == 0:
            _put(manifest, first, commit.number + 1)
    if first > swept:
        _put(manifest, first, first)
    return gone


def _tars(manifest: Manifest, start: int, stop: int) -> Iterator[Commit]:
    """Commits whose tar belongs to the stream."""
    for number in range(start, stop):
        if manifest.n(number) and not is_absolute((commit := manifest.entry(number)).uri):
            yield commit


def _own_bytes(commit: Commit) -> int:
    return 0 if is_absolute(commit.uri) else commit.bytes


def _told(
    manifest: Manifest, old: Floor, first: int, held_by: ReaderRecord | None, gone: Sequence[Commit]
) -> Pruned:
    return Pruned(
        commits=first - old.first,
        records=manifest.before(first) - old.records,
        shards=len(gone),
        bytes=sum(commit.bytes for commit in gone),
        first=first,
        held_by=held_by,
    )


@contextlib.contextmanager
def _only_one(manifest: Manifest) -> Iterator[None]:
    """Keep a second prune out, where the file system can; the lock dies with the process."""
    store = manifest.store
    if not isinstance(store, LocalStore):
        yield
        return
    with as_stream_error(f"cannot prune the stream at {manifest.url}"):
        path = store.path("locks/prune.lock")
        path.parent.mkdir(exist_ok=True)
        handle = open_lock(path)
    try:
        if try_lock(handle) is False:
            raise StreamError(f"another process prunes the stream at {manifest.url}: wait for it")
        yield
    finally:
        os.close(handle)
