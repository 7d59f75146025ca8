"""Writes records into shards and commits them, with the position of their source and its accounts.

What was not committed was not written: a writer that dies loses its open shard and nothing else, and its
source goes on from the position of the last commit.
"""

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from stream.commits import Accounts, NewCommit, new_shard_id
from stream.config import ShardConfig
from stream.errors import StreamSealed
from stream.manifest import Manifest
from stream.open_shard import OpenShard
from stream.orphans import sweep_orphans
from stream.record import Record


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
            StreamSealed: somebody gave the stream its end; the open shard is not part of it.
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
