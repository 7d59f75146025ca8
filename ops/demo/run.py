"""The demo: images are drawn into a growing stream while a learner goes over it once, and people watch.

Memory of a process and of everything that it started, as Linux counts it.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import torch

from ops.config import recipes
from ops.config.load import build
from ops.config.schema import RunConfig
from ops.demo.feed import Feed, FeedProcess
from ops.errors import OpsError, RunLocked
from ops.rundir.files import read_json, write_json
from ops.rundir.lock import RunLock
from ops.rundir.summary import FINISHED, RunSummary
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.train.signals import StopRequest
from ops.train.start import learn
from stream.machine import cores

_PAGE = os.sysconf("SC_PAGE_SIZE")


def family(root: int, proc: Path = Path("/proc")) -> dict[int, int]:
    """Resident bytes of a process and all its descendants, by process number; empty where there is no /proc.

    Pages that processes share count once for each: the sum is at least what is really taken.
    """
    resident: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for entry in proc.glob("[0-9]*"):
        try:
            # The name in parentheses may itself hold blanks and parentheses; fields count from behind it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            continue  # it ended while we looked
        resident[int(entry.name)] = int(fields[21]) * _PAGE
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: dict[int, int] = {}
    waiting = [root] if root in resident else []
    while waiting:
        process = waiting.pop()
        found[process] = resident[process]
        waiting += children.get(process, [])
    return found


class PeakMemory:
    """A context that watches this process and its descendants from a thread of its own.

    Args:
        interval_s: seconds between two looks.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self.peak_bytes = 0
        """Largest sum seen so far; 0 where it cannot be told."""
        self.peak_processes = 0
        """Processes at that moment."""
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def look(self) -> None:
        """Measure once, now."""
        found = family(os.getpid())
        if sum(found.values()) > self.peak_bytes:
            self.peak_bytes = sum(found.values())
            self.peak_processes = len(found)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        self.look()
        while not self._end.wait(self._interval_s):
            self.look()


RECIPE = "demo"
MARK = "demo.json"
"""File that says: a demo made this directory, and another may replace it."""
SHORTEST_S = 15.0
MOST_PASSES = 1_000_000
"""Over images that are given: more than any demo has time for."""

# Of the whole time so much is kept for what follows: judging, drawing the sheet, writing the page.
_AFTER_S, _AFTER_SHARE = 15.0, 0.3
# So much of it is for learning, even where starting took long.
_LEAST_SHARE = 0.4
_PICTURE_PX = 64
_SHARD_RECORDS = 256
_AHEAD_RECORDS, _FEWEST_AHEAD = 2048, 512
# The learner may take so much longer than the ingest for the records that lie before it; then it is ended.
_GRACE_S = 8.0
_WATCH_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What a demo is asked to do."""

    run_dir: Path
    images: str = ""
    """Folder, tar or glob to learn from; empty draws pictures."""
    seconds: float = 120.0
    """How long all of it takes, about; the first import of torch after an installation comes on top."""
    seed: int = 0
    port: int | None = None
    """Of metrics and live page; None = the usual one, or a free one when that is taken."""

    def __post_init__(self) -> None:
        if not self.seconds >= SHORTEST_S:
            raise ValueError(f"seconds must be >= {SHORTEST_S:.0f}, got {self.seconds}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoRun:
    """What happened while it ran."""

    options: DemoOptions
    config: RunConfig
    stream: Path
    picture_px: int
    """Side of drawn pictures, pixels."""
    summary: RunSummary
    """Of the learner."""
    ingest: dict[str, Any]
    """Of the ingest, as `IngestReport` has it."""
    seconds: float
    """From the start until the learner had ended."""
    peak_bytes: int
    """Largest memory of all processes together; 0 where it cannot be told."""
    peak_processes: int
    live_page: str
    """Where it was; empty when nothing was served."""
    exit_code: int
    """0, or 143 after SIGTERM."""
    time_used: bool = False
    """Its time was over and ended it, in whatever pass over the images it was."""

    @property
    def status(self) -> str:
        """finished, also where its time ended it as meant; stopped: somebody asked."""
        return FINISHED if self.time_used else self.summary.status

    @property
    def passes(self) -> float:
        """How often the stream was read, parts of a pass included; 0 when nothing is known of it."""
        summary, written = self.summary, self.ingest.get("written", 0)
        read = summary.samples + summary.skipped + summary.left_over
        return read / written if written else 0.0


def run_demo(options: DemoOptions, *, say: Callable[[str], None], out: TextIO) -> DemoRun:
    """Ingest and learn at the same time until the time is over, or somebody presses Ctrl-C.

    Args:
        options: what to do.
        say: takes lines for people.
        out: where the progress line is written.

    Returns:
        What happened. After Ctrl-C too: then both sides have saved, and the stream is sealed.

    Raises:
        OpsError: `run_dir` holds something that no demo made, or a demo that still runs; the port is taken;
            the ingest ended in an error.
        IngestError: nothing is at `images`.
    """
    began = time.monotonic()
    config = demo_config(options)
    stream = options.run_dir / "stream"
    after = min(_AFTER_S, _AFTER_SHARE * options.seconds)
    feed = Feed(
        stream=str(stream),
        run_dir=str(options.run_dir),
        images=str(Path(options.images).absolute()) if options.images else "",
        seed=options.seed,
        size=_PICTURE_PX,
        until=time.time() + options.seconds - after,
        least_s=_LEAST_SHARE * options.seconds,
        ahead=_AHEAD_RECORDS,
        fewest_ahead=_FEWEST_AHEAD,
        shard_records=_SHARD_RECORDS,
    )
    feed.source()  # a wrong address is told before anything is removed
    if prepare_directory(options.run_dir):
        say(f"replacing the demo in {options.run_dir}")
    write_json(options.run_dir / MARK, {"seed": options.seed, "images": options.images, "began": time.time()})
    # More threads than processors are left by ingest and reader wait for each other most of the time.
    torch.set_num_threads(max(1, cores() - 1))
    stop = StopRequest()
    with (
        stop,  # from here on: a signal before the learner looks for one would leave the ingest side behind
        PeakMemory() as memory,
        FeedProcess(feed) as feeding,
        _Watch(options.run_dir, feeding, stop, until=feed.until if options.images else 0.0) as watch,
    ):
        summary = learn(str(stream), options.run_dir, config, wait=True, stop=stop, out=out)
        feeding.stop()
        if feeding.failed():
            raise OpsError("the ingest side of the demo has failed: what it said stands above")
        ingest = feeding.report()
    return DemoRun(
        options=options, config=config, stream=stream, picture_px=_PICTURE_PX, summary=summary, ingest=ingest,
        seconds=time.monotonic() - began, peak_bytes=memory.peak_bytes, peak_processes=memory.peak_processes,
        live_page=watch.live_page, exit_code=stop.exit_code, time_used=watch.time_used,
    )  # fmt: skip


def demo_config(options: DemoOptions) -> RunConfig:
    """The settings of the demo's run."""
    values = recipes.load(RECIPE).values
    own = [f"seed={options.seed}"]
    if options.images:  # drawn pictures never end; a folder is read again until the time is used
        own.append(f"passes={MOST_PASSES}")
    config = build(values, own)
    port = options.port
    if port is None:
        port = config.server.port if _is_free(config.server.host, config.server.port) else 0
    return build(values, [*own, f"server.port={port}"])


def prepare_directory(run_dir: Path) -> bool:
    """Make the run directory, new and empty.

    An earlier demo in it is replaced: its pictures can be drawn again. Anything else is left alone.

    Returns:
        Whether there was an earlier demo.

    Raises:
        OpsError: something that no demo made lies there.
        RunLocked: the demo there still runs.
        RedisUnavailable: another command is busy with the Redis server there.
    """
    if not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir())):
        run_dir.mkdir(parents=True, exist_ok=True)
        return False
    if not run_dir.is_dir() or read_json(run_dir / MARK) is None:
        raise OpsError(
            f"{run_dir} is there and was not made by a demo: remove it, or give --run another directory"
        )
    try:
        RunLock(run_dir).acquire().release()
    except RunLocked as error:
        raise RunLocked(f"a demo still runs in {run_dir}: {error}") from error
    # A killed demo left its server running; without its directory nobody could ever find it again.
    EmbeddedRedis(run_dir).end_left_over()
    shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    return True


class _Watch:
    """Looks at both sides while the learner has the main thread; a context.

    Ends the learner when the ingest has failed (it would wait for records without end), when the time is over
    on a machine so slow that the last records take too long, and when passes over given images have used it.

    Args:
        run_dir: of the demo.
        feeding: the ingest side.
        stop: ends the learner.
        until: Unix time up to which given images are read again; 0 = they are read once.
    """

    def __init__(self, run_dir: Path, feeding: FeedProcess, stop: StopRequest, *, until: float = 0.0) -> None:
        self.time_used = False
        """The time of passes over given images was over, and that ended the learner."""
        self._until = until
        self.live_page = ""
        """Where the live page is; empty until it is served."""
        self._run_dir, self._feeding, self._stop = run_dir, feeding, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="demo-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        ended: float | None = None
        while not self._over.wait(_WATCH_S):
            if not self.live_page:
                place = read_json(self._run_dir / "server.json") or {}
                self.live_page = place.get("url", "") if place.get("pid") == os.getpid() else ""
            if ended is None and self._feeding.ended():
                ended = time.monotonic()
            if self._feeding.failed():
                self._stop.ask()
                return
            if ended is not None and time.monotonic() - ended > _GRACE_S and time.time() >= self._until:
                self.time_used = self._until > 0 and not self._stop.requested()
                self._stop.ask()
                return


def _is_free(host: str, port: int) -> bool:
    """Whether a port can be taken now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
