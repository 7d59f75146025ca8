"""For programs that use the prototypes of a run: open, verify, watch, swap.

    from ops.snapshots.watch import watch_run

    with watch_run("RUN/", "head") as watch:  # loaded, and every digest checked
        shot = watch.current  # swapped in the background whenever `head` moves
        print(f"version {shot.info.version}: prototypes {tuple(shot.tensors['prototypes'].shape)}")
        newer = watch.wait(timeout_s=2)  # None when nothing came
        print(f"now version {(newer or shot).info.version}")
        print(f"confirmed {watch.age_s:.0f} s ago, {watch.error or 'Redis answers'}")

A notification of Redis wakes it at once; since a notification may be lost, it also looks every `poll_s`. What
is damaged is not taken. While Redis is away, or has lost its data, the last good snapshot stays, and `age_s`
says how long ago Redis last confirmed it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Self

import redis

from ops.errors import OpsError, RedisUnavailable, SnapshotNotFound
from ops.rundir.files import read_run
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.reader import LoadedSnapshot, load_snapshot
from ops.snapshots.redis_client import error_text
from ops.snapshots.store import SnapshotStore

logger = logging.getLogger(__name__)

POLL_S = 10.0
"""Seconds between two looks when nothing was heard."""
RETRY_S = 1.0
"""Seconds until the next attempt when Redis does not answer; at most `poll_s`."""
CLOSE_S = 0.2
"""How long `close` may have to wait for a thread that listens, seconds."""


@contextlib.contextmanager
def watch_run(
    run_dir: Path | str,
    which: str = "stable",
    *,
    url: str = "",
    poll_s: float = POLL_S,
    wait_s: float = 0.0,
    on_swap: Callable[[LoadedSnapshot], None] | None = None,
) -> Iterator["SnapshotWatch"]:
    """Watch a snapshot of the run in a directory, for the length of a `with`.

    Args:
        run_dir: the run directory, which holds the encoders; read only, but for a run's own Redis, which is
            started when no other command has it up.
        which: `stable`, `head` (the newest, whatever its health), `pin:NAME`, or a version.
        url: Redis; else the run's setting, SWAVSTREAM_REDIS_URL, or the run's own server.
        poll_s: seconds between two looks when nothing is heard.
        wait_s: how long to wait for a first snapshot, or for Redis, seconds.
        on_swap: called with each later snapshot, from the watching thread, which ends if it raises.

    Raises:
        RunNotFound: no run there.
        RedisUnavailable: Redis does not answer within `wait_s`.
        SnapshotError: no such snapshot within `wait_s`, or it is damaged.
    """
    folder = Path(run_dir)
    record = read_run(folder)
    with open_redis(folder, url or record.config.get("snapshot", {}).get("url", "")) as client:
        store = SnapshotStore(client, record.uuid)
        watch = SnapshotWatch(store, EncoderFiles(folder), which, poll_s=poll_s, on_swap=on_swap)
        with contextlib.closing(watch.open(wait_s)):
            yield watch


class SnapshotWatch:
    """Holds the snapshot that a name means, verified, and swaps it when the name moves.

    `current` is one reference that is replaced as a whole: take it once for each piece of work, and use what
    belongs together from it. Any thread may read; `wait` is for one.

    Args:
        store: the run's snapshots.
        encoders: the run's encoders.
        which: `stable`, `head`, `pin:NAME` or a version.
        poll_s: seconds between two looks when nothing is heard.
        on_swap: called with each later snapshot, from the watching thread, which ends if it raises.
    """

    def __init__(
        self,
        store: SnapshotStore,
        encoders: EncoderFiles,
        which: str = "stable",
        *,
        poll_s: float = POLL_S,
        on_swap: Callable[[LoadedSnapshot], None] | None = None,
    ) -> None:
        if poll_s <= 0:
            raise ValueError(f"poll_s must be > 0, got {poll_s}")
        self.error = ""
        """Why Redis could not be asked, or what it names could not be taken; empty while all is well."""
        self._store, self._encoders, self._which = store, encoders, which
        self._poll_s, self._on_swap = poll_s, on_swap
        self._current: LoadedSnapshot | None = None
        self._given: LoadedSnapshot | None = None
        self._confirmed = time.monotonic()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="snapshot watch", daemon=True)

    def open(self, wait_s: float = 0.0) -> Self:
        """Load the first snapshot and begin to watch; blocks for `wait_s` and one load at most.

        Raises:
            RedisUnavailable: Redis does not answer.
            SnapshotError: no such snapshot, or it is damaged.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self._look()
                break
            except (redis.RedisError, SnapshotNotFound) as error:
                if time.monotonic() >= deadline:
                    if isinstance(error, SnapshotNotFound):
                        raise
                    raise RedisUnavailable(
                        f"no answer from the snapshots of the run: {error_text(error)}"
                    ) from error
                time.sleep(min(0.1, self._poll_s))
        self._given = self._current
        self._thread.start()
        return self

    @property
    def current(self) -> LoadedSnapshot:
        """The last good snapshot; never waits."""
        if self._current is None:
            raise RuntimeError("the watch is not open: call open(), or use watch_run()")
        return self._current

    @property
    def age_s(self) -> float:
        """Seconds since Redis last said that `current` is what the name means."""
        return time.monotonic() - self._confirmed

    def wait(self, timeout_s: float | None = None) -> LoadedSnapshot | None:
        """Block until there is a newer one than `open` or the last `wait` gave; None when none came."""
        with self._changed:
            there = self._changed.wait_for(
                lambda: self._current is not self._given or self._closing.is_set(), timeout_s
            )
            if not there or self._current is self._given:
                return None
            self._given = self._current
            return self._given

    def close(self) -> None:
        """Stop watching; `current` stays usable. May be called twice."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        with contextlib.closing(self._swaps()) as swaps:
            for loaded in swaps:
                if self._on_swap is not None:
                    self._on_swap(loaded)  # what it raises is its own, and ends the thread

    def _swaps(self) -> Generator[LoadedSnapshot]:
        """Each later snapshot when it has become `current`, until the watch is closed."""
        pause = min(RETRY_S, self._poll_s)
        while not self._closing.is_set():
            try:
                with self._store.client.pubsub(ignore_subscribe_messages=True) as heard:
                    heard.subscribe(self._store.key("notify"))
                    while not self._closing.is_set():
                        swapped = self._tried()
                        if swapped is not None:
                            yield swapped
                        self._listen(heard)
            except (redis.RedisError, OSError) as error:
                self._trouble(f"Redis does not answer: {error_text(error)}")
                self._closing.wait(pause)

    def _listen(self, heard: Any) -> None:
        """Until a notification comes, or it is time to look anyway."""
        deadline = time.monotonic() + self._poll_s
        while not self._closing.is_set():
            left = deadline - time.monotonic()
            if left <= 0 or heard.get_message(timeout=min(left, CLOSE_S)) is not None:
                return

    def _tried(self) -> LoadedSnapshot | None:
        """Look; what is wrong with a snapshot is noted, and the last good one stays."""
        try:
            return self._look()
        except OpsError as error:
            self._trouble(str(error))
            return None

    def _look(self) -> LoadedSnapshot | None:
        """Ask what the name means; the snapshot, when it is another one than before."""
        info = self._store.show(self._which)
        loaded = None
        if self._current is None or self._current.info.version != info.version:
            loaded = load_snapshot(self._store, self._encoders, info.version)
            with self._changed:
                self._current = loaded
                self._changed.notify_all()
        self._confirmed = time.monotonic()
        if self.error:
            logger.info("the snapshots of run %s can be read again", self._store.run)
            self.error = ""
        return loaded

    def _trouble(self, text: str) -> None:
        if not self.error:
            logger.warning("keeping snapshot %d: %s", self.current.info.version, text)
        self.error = text
