"""Publishing snapshots beside the learner: a thread of its own, one waiting snapshot at most, no stall."""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import redis

from learner.report import Snapshot
from ops.config.schema import RunConfig
from ops.errors import OpsError, RedisUnavailable, StaleEpoch
from ops.rundir.files import RunRecord
from ops.rundir.summary import Progress
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.redis_client import connect, error_text, redis_url
from ops.snapshots.store import SnapshotStore, warnings_of
from ops.snapshots.types import PublishResult, SnapshotTaken, health_in_words
from ops.snapshots.writer import EpochLost, SnapshotWriter

logger = logging.getLogger(__name__)

RETRY_S = (1.0, 30.0)
"""Wait after the first failure, which doubles with each further one, and the longest wait; seconds."""

HEALTHY = "healthy"
"""Verdict of a snapshot's health that lets `stable` move."""

GIVE_UP_S = 1.0
"""How much longer `close` waits for an attempt that is under way, seconds."""


class Publisher:
    """Sends snapshots to the store in the background.

    `publish` never blocks and never raises; call it, `start` and `close` from the learner's thread. One
    snapshot waits at most: a newer one takes its place. When Redis or the disk is away the waiting snapshot
    is tried again until it is published or replaced. A learner that was fenced off publishes nothing more.

    Args:
        store: snapshots of this run.
        encoders: where encoder weights go.
        config_hash: of the run's settings, for the metadata.
        floor_epoch: `epoch` as it stood in the checkpoint.
        floor_version: `version` as it stood in the checkpoint.
        keep: newest snapshots that stay.
        ladder: older ones that stay for each doubling of their age.
        on_result: given every result, from the publishing or the learner's thread; must be quick.
        on_warning: given a sentence for each danger in the server's settings, once; as quick.
        revive: brings an embedded server back when it died; may raise OpsError.
        retry_s: wait after the first failure, which doubles with each further one, and the longest; seconds.
    """

    def __init__(  # noqa: PLR0913  what a run knows only when it is wired
        self,
        store: SnapshotStore,
        encoders: EncoderFiles,
        *,
        config_hash: str = "",
        floor_epoch: int = 0,
        floor_version: int = 0,
        keep: int = 20,
        ladder: int = 0,
        on_result: Callable[[PublishResult], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
        revive: Callable[[], None] | None = None,
        retry_s: tuple[float, float] = RETRY_S,
    ) -> None:
        self.epoch = floor_epoch
        """Fencing number: save it in the checkpoint."""
        self.version = floor_version
        """Last version number known: save it in the checkpoint."""
        self.last: PublishResult | None = None
        """The latest snapshot that stands in Redis."""
        self._store = store
        self._writer = SnapshotWriter(store)
        self._encoders = encoders
        self._config_hash = config_hash
        self._keep, self._ladder = keep, ladder
        self._on_result, self._on_warning = on_result, on_warning
        self._warned: set[str] = set()
        self._revive = revive
        self._retry_s = retry_s
        self._owner = uuid.uuid4().hex
        self._started_ms = int(time.time() * 1000)
        self._who = f"{socket.gethostname()}:{os.getpid()}"
        self._ready = threading.Condition()
        self._pending: SnapshotTaken | None = None
        self._in_flight: SnapshotTaken | None = None
        self._closing = False
        self._given_up = False
        self._fenced = False
        self._acquired = False  # this process took an epoch before
        self._holds = False  # and nothing has happened since that could have lost it
        self._failures = 0
        self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)

    def start(self) -> None:
        """Begin: takes the epoch as soon as Redis answers, so that an older learner is refused at once."""
        self._thread.start()

    def publish(self, taken: SnapshotTaken) -> None:
        """Hand over a snapshot; returns at once."""
        with self._ready:
            replaced, self._pending = self._pending, None if self._fenced else taken
            fenced = self._fenced
            in_flight = self._in_flight
            self._ready.notify()
        if replaced is not None and replaced is not in_flight:
            self._notify(replaced.unpublished("superseded"))
        if fenced:
            self._notify(taken.unpublished("stale_epoch", detail="fenced off earlier"))

    def close(self, timeout_s: float = 20.0) -> bool:
        """Publish what still waits and end; blocks for `timeout_s`, and a second more, at most.

        Returns:
            Whether nothing was left unpublished.
        """
        with self._ready:
            self._closing = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._ready:
            # From here on a server that is being stopped is not brought back.
            self._given_up = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(GIVE_UP_S)
        with self._ready:
            left = self._pending
        if left is not None:
            logger.warning("the snapshot at %d samples was not published in time", left.samples)
        return left is None and not self._fenced

    def _work(self) -> None:
        self._attempt(None)
        while True:
            with self._ready:
                while self._pending is None and not self._closing:
                    self._ready.wait()
                taken = self._in_flight = self._pending
                if taken is None or self._given_up:
                    return
            if not self._attempt(taken):
                with self._ready:
                    if self._fenced:
                        self._pending = None
                    else:
                        first_s, longest_s = self._retry_s
                        # At the end attempts follow quickly: `close` limits how long they may go on.
                        longest_s = first_s / 4 if self._closing else longest_s
                        self._ready.wait(pause_s(self._failures, first_s=first_s, longest_s=longest_s))

    def _attempt(self, taken: SnapshotTaken | None) -> bool:
        """Take the epoch, and publish a snapshot when there is one; returns whether it went well."""
        began = time.monotonic()
        try:
            if self._failures and self._revive is not None and not self._given_up:
                self._revive()
            self._acquire()
            result = self._send(taken, began) if taken is not None else None
        except StaleEpoch as error:
            self._fenced = True
            logger.warning("snapshots are no longer published: %s", error)
            if taken is not None:
                self._notify(taken.unpublished("stale_epoch", detail=str(error), began=began))
            return False
        except (redis.RedisError, OSError, OpsError) as error:
            self._fail(taken, error, began)
            return False
        if self._failures:
            logger.warning("Redis answers again after %d failed attempts", self._failures)
            self._failures = 0
        if result is not None:
            self._notify(result)
        return True

    def _acquire(self) -> None:
        if self._holds:
            return
        self.epoch, last = self._writer.acquire(
            self._owner,
            started_ms=self._started_ms,
            floor_epoch=self.epoch,
            floor_version=self.version,
            again=self._acquired,
            who=self._who,
        )
        self.version = max(self.version, last)
        self._acquired = self._holds = True
        self._warn()

    def _warn(self) -> None:
        """Say what is dangerous about the server, which may be another one than before."""
        for sentence in warnings_of(self._store.client):
            if sentence not in self._warned:
                self._warned.add(sentence)
                logger.warning("%s", sentence)
                if self._on_warning is not None:
                    self._on_warning(sentence)

    def _send(self, taken: SnapshotTaken, began: float) -> PublishResult:
        shot = taken.snapshot
        path = self._encoders.save(shot.encoder_digest, shot.encoder)
        fields = taken.fields(
            encoder=f"{path.parent.name}/{path.name}",
            run_dir=str(self._encoders.folder.parent.resolve()),
            config_hash=self._config_hash,
            publisher=self._who,
        )
        try:
            done = self._write(taken, fields)
        except EpochLost:
            # The server restarted empty, or a replica that lagged took over: numbers go on from what we know.
            logger.warning("Redis has lost the state of run %s; taking the epoch again", self._store.run)
            self._holds = False
            self._acquire()
            done = self._write(taken, fields)
        with self._ready:
            self.version = max(self.version, done.version)
            if self._pending is taken:
                self._pending = None
        self._prune()
        if done.abandoned:
            logger.warning(
                "snapshots %s are ahead of the checkpoint that this run went on from; %d follows instead",
                ", ".join(map(str, done.abandoned)), done.version,
            )  # fmt: skip
        detail = "" if _is_healthy(shot) else health_in_words(shot.health)
        self.last = replace(done, seconds=time.monotonic() - began, detail=detail, time=time.time())
        return self.last

    def _write(self, taken: SnapshotTaken, fields: dict[str, str | int]) -> PublishResult:
        return self._writer.publish(
            owner=self._owner,
            epoch=self.epoch,
            samples=taken.samples,
            digest=taken.snapshot.digest,
            tensors=taken.snapshot.tensors,
            healthy=_is_healthy(taken.snapshot),
            fields=fields,
            floor_version=self.version,
        )

    def _prune(self) -> None:
        try:
            if self._writer.prune(self._keep, ladder=self._ladder, owner=self._owner, epoch=self.epoch):
                self._drop_encoders()
        except (redis.RedisError, OSError, OpsError) as error:
            logger.warning("old snapshots could not be removed now: %s", error)

    def _drop_encoders(self) -> None:
        self._encoders.prune({info.encoder_digest for info in self._store.versions()})

    def _fail(self, taken: SnapshotTaken | None, error: Exception, began: float) -> None:
        self._failures += 1
        if isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError):
            # The server that answers next may be another one, which knows less: the epoch is taken again.
            self._holds = False
            self._store.client.connection_pool.disconnect()
        elif taken is not None and self._holds:
            # The server answers but takes nothing, so each new snapshot would leave one more file behind.
            with contextlib.suppress(redis.RedisError, OSError, OpsError):
                self._drop_encoders()
        if self._failures == 1:
            logger.warning("snapshots cannot be published now, the learner goes on: %s", error_text(error))
        else:
            logger.debug("attempt %d: %s", self._failures, error)
        if taken is not None:
            self._notify(taken.unpublished("error", detail=error_text(error), began=began))

    def _notify(self, result: PublishResult) -> None:
        if self._on_result is not None:
            self._on_result(result)


def pause_s(failures: int, *, first_s: float, longest_s: float) -> float:
    """Seconds until the next attempt after so many failures in a row."""
    # Bounded before it is a float: a night without Redis is a thousand failures.
    return min(first_s * 2.0 ** min(failures - 1, 16), longest_s)


def _is_healthy(snapshot: Snapshot) -> bool:
    return snapshot.health.get("verdict") == HEALTHY


def start_publisher(
    run_dir: Path,
    record: RunRecord,
    config: RunConfig,
    progress: Progress,
    *,
    on_result: Callable[[PublishResult], None],
    on_warning: Callable[[str], None],
    on_leaving: Callable[[Callable[[], None]], object],
    retry_s: tuple[float, float] = RETRY_S,
) -> Publisher:
    """Find Redis, or start the run's own, and publish in the background.

    Args:
        run_dir: the run directory; an embedded server has its data there.
        record: which run it is.
        config: its settings.
        progress: with the fence that the publisher goes on from.
        on_result: see `Publisher`.
        on_warning: see `Publisher`.
        on_leaving: takes what is to be called when the run is left, the last first.
        retry_s: see `Publisher`.

    Raises:
        RedisUnavailable: not a Redis URL. A server that is away is only a warning.
    """
    url = redis_url(config.snapshot.url)
    revive = None
    if not url:
        embedded = EmbeddedRedis(run_dir)
        on_leaving(embedded.close)
        try:
            embedded.start()
        except (RedisUnavailable, OSError) as error:
            logger.warning("snapshots cannot be published now, the learner goes on: %s", error)
        url, revive = embedded.url, embedded.ensure
    client = connect(url)
    on_leaving(client.close)
    publisher = Publisher(
        SnapshotStore(client, record.uuid),
        EncoderFiles(run_dir),
        config_hash=config.digest(),
        floor_epoch=progress.snapshot_epoch,
        floor_version=progress.snapshot_version,
        keep=config.snapshot.keep,
        ladder=config.snapshot.ladder,
        on_result=on_result,
        on_warning=on_warning,
        revive=revive,
        retry_s=retry_s,
    )
    publisher.start()
    return publisher
