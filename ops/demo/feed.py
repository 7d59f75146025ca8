"""The ingest side of the demo: a process that fills a growing stream by the real ingest, and seals it.

Drawn pictures are a source like others: endless, and resumed like a folder.
"""

import contextlib
import gc
import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

from PIL import Image

from ingest.config import IngestConfig
from ingest.shard_destination import ShardDestination
from ingest.sources import Found, Labels, Position, Source, open_source
from ingest.worker import FINISHED, IngestReport, run_ingest
from ops.demo.drawings.pictures import KINDS, draw
from ops.rundir.files import read_json, write_json
from stream.config import ShardConfig
from stream.fork_server import fork_server
from stream.loader import worker
from stream.record import Record
from stream.shards.manifest import Manifest

QUALITY = 90
"""Of the JPEGs."""


class DrawnSource:
    """Implements `ingest.sources.Source` over `ops.demo.drawings.pictures`; it never ends by itself.

    The position is the number of the next picture, so a second start draws on where the first was stopped.

    Args:
        seed: which stream of pictures; 0 .. 2^64 - 1.
        size: side, pixels; >= 8.
    """

    def __init__(self, *, seed: int, size: int) -> None:
        self.source_id = f"drawn-{seed}-{size}"
        self._seed = seed
        self._size = size

    def items(self, after: Position | None = None) -> Iterator[Found]:
        """Endless pictures after a position."""
        number = int(after["number"]) if after is not None else 0
        while True:
            payload, kind = encoded(self._seed, number, self._size)
            yield Found(
                name=f"{self.source_id}#{number}",
                position={"number": number + 1},
                payload=payload,
                labels=Labels(KINDS.index(kind), kind),
            )
            number += 1

    def warnings(self) -> list[str]:
        """None."""
        return []


def encoded(seed: int, number: int, size: int) -> tuple[bytes, str]:
    """One picture as JPEG, with its kind; see `ops.demo.drawings.pictures.draw`."""
    pixels, kind = draw(seed, number, size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue(), kind


LOOK_S = 0.05
AHEAD_S = 3.0
"""Seconds of the learner's work that may lie before it."""
START_S = 10.0
"""Longest wait for the learner's first step before a stream of few images is sealed."""
JOIN_S = 30.0
REPORT = "ingest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """What is to be brought in; small and picklable."""

    stream: str
    """Folder of the stream."""
    run_dir: str
    """Run directory of the learner, whose progress sets the pace."""
    images: str
    """Folder, tar or glob; empty = drawn pictures."""
    seed: int
    until: float
    """Unix time at which it ends, if by then it has gone on for `least_s`."""
    least_s: float
    """Seconds that it goes on, however long it took to start."""
    size: int = 64
    """Side of drawn pictures, and largest short side of others, pixels."""
    ahead: int = 2048
    """Records that may be written and not yet learned from, at most."""
    fewest_ahead: int = 512
    """So many always may: with fewer, a learner that waits for whole shards and batches would starve."""
    shard_records: int = 256

    def source(self) -> Source:
        """Where images come from.

        Raises:
            IngestError: nothing is at `images`.
        """
        if self.images:
            return open_source(self.images)
        return DrawnSource(seed=self.seed, size=self.size)


class FeedProcess:
    """The ingest side as a process of its own; a context that ends it.

    Ctrl-C in the terminal does not reach it: whoever holds this object decides, by `stop` or by leaving.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        # Of the same server that the learner's readers come from: what it has imported is in memory once.
        context = fork_server([worker.__name__])
        self._stop = context.Event()
        self._process = context.Process(
            target=_fill, args=(feed, self._stop), name="demo-ingest", daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def stop(self) -> None:
        """Ask it to commit what is open and to seal the stream; returns when that is done."""
        self._stop.set()
        self._process.join(JOIN_S)

    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return self._process.exitcode is not None

    def failed(self) -> bool:
        """Whether it ended in an error; what it was went to stderr."""
        return self._process.exitcode not in {None, 0}

    def report(self) -> dict[str, Any]:
        """The accounts of the ingest so far, as `IngestReport` has them; empty before the first."""
        return read_json(Path(self._feed.run_dir) / REPORT) or {}


class _Orphaned(Exception):
    """The demo is gone: what is open is left as after a kill, for the next demo may be writing here."""


def _fill(feed: Feed, stop: Event) -> None:
    """Runs in the child until the time is over, the source is at its end, or it is asked to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # else the collector writes to what the fork server has imported, and each page is copied
    with contextlib.suppress(_Orphaned):
        _ingest(feed, stop.is_set)


def _ingest(feed: Feed, stopped: Callable[[], bool]) -> None:
    report_path = Path(feed.run_dir) / REPORT

    def tell(report: IngestReport) -> None:
        write_json(report_path, asdict(report))

    pace = _Pace(feed, stopped)
    pace.check_parent()
    config = IngestConfig(
        short_side=feed.size if feed.images else 0,
        workers=0,
        shard=ShardConfig(max_records=feed.shard_records, max_age_s=1.0),
    )
    source = feed.source()
    into = _Counted(feed.stream, source.source_id, config, pace)
    report = run_ingest(
        source, feed.stream, config, progress=tell, stop=pace.over, destination=into, open_stream=True
    )
    pace.check_parent()
    if feed.images and report.status == FINISHED:
        pace.await_start()
    Manifest.open(feed.stream).seal()
    write_json(report_path, {**asdict(report), "sealed": True})


class _Pace:
    """Keeps the ingest a little ahead of the learner: asked between two images."""

    def __init__(self, feed: Feed, stopped: Callable[[], bool]) -> None:
        self._feed = feed
        self._stopped = stopped
        self._until = max(feed.until, time.time() + feed.least_s)
        # Not its number: of a process that the fork server made, the server is the parent for the system.
        self._parent = multiprocessing.parent_process()
        self._history = Path(feed.run_dir) / "history.jsonl"
        self.written = 0
        """Records that the learner will see; what was skipped is none of them, so it must not count."""
        self._used = 0
        self._allowed = feed.fewest_ahead
        self._looked = time.monotonic()

    def over(self) -> bool:
        """Whether to end; waits while the learner is too far behind.

        Raises:
            _Orphaned: see there.
        """
        while True:
            self.check_parent()
            if self._stopped() or time.time() >= self._until:
                return True
            if self.written - self._used < self._allowed:
                return False
            if not self._look():
                time.sleep(LOOK_S)

    def await_start(self) -> None:
        """Return with the learner's first step, or after a while.

        A stream that is sealed before is taken for one of known length: that of more passes than there is
        time for.
        """
        deadline = time.monotonic() + START_S
        while not self._stopped() and time.monotonic() < deadline and not samples_used(self._history):
            self.check_parent()
            time.sleep(LOOK_S)
        self.check_parent()

    def check_parent(self) -> None:
        """Raise _Orphaned when the demo is gone."""
        if self._parent is not None and not self._parent.is_alive():
            raise _Orphaned

    def _look(self) -> bool:
        """Whether the learner is further; a slow one gets less, so that its last records do not take long."""
        now, used = time.monotonic(), samples_used(self._history)
        if used <= self._used:
            return False
        allowed = (used - self._used) / (now - self._looked) * AHEAD_S
        self._allowed = int(min(self._feed.ahead, max(self._feed.fewest_ahead, allowed)))
        self._used, self._looked = used, now
        return True


class _Counted(ShardDestination):
    """Tells the pace of each record as it is written: reports come too seldom for that."""

    def __init__(self, url: str, source_id: str, config: IngestConfig, pace: _Pace) -> None:
        super().__init__(url, source_id, config)
        self._pace = pace

    def write(self, record: Record, position: Any) -> None:
        """Write, then count."""
        super().write(record, position)
        self._pace.written += 1


def samples_used(history: Path) -> int:
    """Samples of the last entry of a history file; 0 when there is none yet. Reads only the file's end."""
    try:
        with history.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["samples"])
        except (ValueError, KeyError, TypeError):
            continue  # half written, or cut by the window
    return 0
