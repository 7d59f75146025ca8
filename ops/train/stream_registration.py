"""A run's entry among the readers of its stream: which shards must stay for it, and how far it has come.

A stream that takes no note is a warning, and pruning keeps what the last note asked for. Notes are written
from a thread of their own, so that no store can hold up the learner.
"""

import logging
import socket
import threading
import time
from pathlib import Path

from ops.rundir.checkpoint import CURSOR, name_of, numbers
from ops.rundir.files import RunRecord, read_json
from ops.train.events import (
    CheckpointResult,
    Event,
    Leaving,
    LeftOut,
    Rewound,
    Started,
    StepDone,
    Waiting,
)
from stream.cursor import Cursor
from stream.errors import StreamDamaged, StreamError
from stream.shards.manifest import Manifest
from stream.shards.readers import ReaderRecord, forget_reader, read_reader, write_reader
from stream.storage import Store, open_store

logger = logging.getLogger(__name__)

BEAT_S = 10.0
"""Longest time between two notes of a run at work: see stream/shards/retention.py."""
_NEWS_S = 2.0
"""Shortest time between two notes."""
_TOPIC = "kafka://"


def first_needed(cursor: Cursor, passes: int) -> int:
    """The first commit that a run may still read when it goes on from a cursor.

    A window of commits is needed as a whole as long as a lane stands in it, and so is what the replay window
    is rebuilt from.
    """
    units = [position.unit for position in cursor.positions]
    if cursor.replay is not None:
        units += [position.unit for position in cursor.replay.positions]
    if cursor.pass_number + 1 < passes or (cursor.replay is not None and cursor.replay.pass_ends):
        units.append(cursor.begin)
    return min(units, default=0)


def kept_cursors(run_dir: Path) -> list[Cursor]:
    """Cursors of all checkpoints of a run that can be read, oldest first."""
    folder = run_dir / "checkpoints"
    found = []
    for number in numbers(folder):
        try:
            found.append(Cursor.from_json((folder / name_of(number) / CURSOR).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, StreamError):
            continue  # pruned or damaged: nothing goes on from there
    return found


def entry_name(store: Store, run: str, run_dir: Path) -> str:
    """Name of a run's entry in the register: its uuid, unless a copy of the run directory has that one.

    An entry is of this directory when it names the same host and path, or the same directory: one that was
    moved. An entry that names no directory was written by an older program and counts as this run's.

    Raises:
        StreamError: the register cannot be read.
    """
    folder = _folder(run_dir)
    try:
        entry = read_reader(store, run)
    except StreamDamaged:
        return run  # it is written again
    if entry is None or not entry.folder or entry.folder == folder or entry.where == _where(run_dir):
        return run
    return f"{run}-{folder:x}"


def _where(run_dir: Path) -> str:
    return f"{socket.gethostname()}:{run_dir.absolute()}"


def _folder(run_dir: Path) -> int:
    """Number of the directory; 0 when it cannot be looked at."""
    try:
        return run_dir.stat().st_ino % 2**62
    except OSError:
        return 0


def leave(stream: str, run: str, run_dir: Path) -> None:
    """Take a run out of the register of a stream that it reads no more; where that fails it is a warning.

    May block on the store.
    """
    if stream.startswith(_TOPIC):
        return
    try:
        store = open_store(stream)
        forget_reader(store, entry_name(store, run, run_dir))
    except (StreamError, ValueError) as error:
        logger.warning(
            "the stream at %s still keeps its shards for this run, which needs them no more: %s; "
            "`swavstream stream prune %s --forget %s` takes it out",
            stream,
            error,
            stream,
            run,
        )


class StreamRegistration:
    """A step listener that keeps the entry of one run up to date. It raises nothing.

    `Started` registers the run: with what its checkpoints need, or, when it has none, with all that is there.
    Any thread may call `notify`. `Started` and `Leaving` may block on the stream's store, all else returns at
    once. The entry stays, unless the run is finished.
    """

    def __init__(self, run_dir: Path, record: RunRecord, *, passes: int) -> None:
        """Prepare; the stream is not touched yet.

        Args:
            run_dir: the run directory, whose checkpoints are looked at.
            record: what the run is; a topic has no register, and nothing is done then.
            passes: over the stream.
        """
        self._run_dir, self._record, self._passes = run_dir, record, passes
        self._stream = record.stream
        self._name = ""
        """Of the entry, once the register was looked at."""
        self._manifest: Manifest | None = None
        self._first = self._begin = self._used = 0
        self._waiting = self._finished = self._warned = False
        self._look = True
        self._news, self._ending = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        match event:
            case Started():
                self._start()
            case StepDone(batch=batch):
                self._note(used=batch.cursor.read, waiting=False)
            case Rewound(cursor=cursor) | LeftOut(cursor=cursor):
                self._note(used=cursor.read, waiting=False)
            case Waiting(records=records):
                self._note(used=self._used, waiting=records)
            case CheckpointResult(result="ok"):
                self._look = True
                self._news.set()
            case Leaving(finished=finished):
                # Before the summary is written: a finished run is not opened again, so one that is killed in
                # between must not hold its shards for ever.
                self.close(finished=finished)

    def close(self, *, finished: bool = False) -> None:
        """Write the last state and end; may block on the store as long as that takes. May be called twice.

        Args:
            finished: the run has all that it wanted of the stream, and its entry goes.
        """
        if self._thread is None:
            return
        self._waiting, self._look, self._finished = False, not finished, finished
        self._ending.set()
        self._news.set()
        self._thread.join()
        self._thread = None
        self._write()

    def _start(self) -> None:
        # The stream may have moved since the run was opened.
        self._stream = str((read_json(self._run_dir / "run.json") or {}).get("stream", self._record.stream))
        if self._stream.startswith(_TOPIC):
            return
        self._write()
        self._thread = threading.Thread(target=self._serve, name="registration", daemon=True)
        self._thread.start()

    def _note(self, *, used: int, waiting: bool) -> None:
        """So many records were used or skipped, over all sessions; whether the run waits for records."""
        if (used, waiting) != (self._used, self._waiting):
            self._used, self._waiting = used, waiting
            self._news.set()

    def _serve(self) -> None:
        while not self._ending.is_set():
            self._news.wait(BEAT_S)
            self._news.clear()
            if not self._ending.is_set():
                self._write()
            self._ending.wait(_NEWS_S)

    def _write(self) -> None:
        try:
            manifest = self._manifest = self._manifest or Manifest.open(self._stream)
            self._name = self._name or entry_name(manifest.store, self._record.uuid, self._run_dir)
            if self._finished:
                forget_reader(manifest.store, self._name)
                return
            if self._look:
                self._look = False
                self._look_up(manifest)
            write_reader(
                manifest.store,
                ReaderRecord(
                    run=self._name,
                    where=_where(self._run_dir),
                    folder=_folder(self._run_dir),
                    first=self._first,
                    begin=self._begin,
                    used=self._used,
                    waiting=self._waiting,
                    seen=time.time(),
                ),
            )
        except (StreamError, OSError) as error:  # of the stream, or of the run's own directory
            self._look = True
            if not self._warned:
                logger.warning(
                    "the stream takes no note of what this run needs: %s; pruning goes by the last note",
                    error,
                )
            self._warned = True
        else:
            self._warned = False

    def _look_up(self, manifest: Manifest) -> None:
        """What the checkpoints that are kept need."""
        cursors = kept_cursors(self._run_dir)
        if cursors:
            newest = cursors[-1]
            self._first = min(first_needed(cursor, self._passes) for cursor in cursors)
            self._begin = newest.begin
        else:
            self._first = self._begin = manifest.floor.first
