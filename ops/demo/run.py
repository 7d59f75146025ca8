"""The demo: images are drawn into a growing stream while a learner goes over it once, and people watch."""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
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
# The learner may take so much longer than the ingest for the records that lie before it; then it is ended.
_GRACE_S = 8.0


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
    """Most memory of all processes together at any look."""
    peak_processes: int
    live_page: str
    """Where it was; empty when nothing was served."""
    exit_code: int
    """0, or 143 after SIGTERM."""
    time_used: bool = False
    """Its time was over and ended it, in whatever pass over the images it was."""

    @property
    def status(self) -> str:
        """finished, also where its time ended it as meant; stopped: a user asked for it."""
        return FINISHED if self.time_used else self.summary.status

    @property
    def passes(self) -> float:
        """How often the stream was read, parts of a pass included; 0 when nothing is known of it."""
        summary, written = self.summary, self.ingest.get("written", 0)
        read = summary.samples + summary.skipped + summary.left_over
        return read / written if written else 0.0


def run_demo(options: DemoOptions, *, say: Callable[[str], None], out: TextIO) -> DemoRun:
    """Ingest and learn at the same time until the time is over, or until Ctrl-C.

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
        stream=str(stream), run_dir=str(options.run_dir), seed=options.seed,
        images=str(Path(options.images).absolute()) if options.images else "",
        until=time.time() + options.seconds - after, least_s=_LEAST_SHARE * options.seconds,
    )  # fmt: skip
    feed.source()  # a wrong address is an error before anything is removed
    if prepare_directory(options.run_dir):
        say(f"replacing the demo in {options.run_dir}")
    write_json(options.run_dir / MARK, {"seed": options.seed, "images": options.images, "began": time.time()})
    # More threads than processors are left by ingest and reader wait for each other most of the time.
    torch.set_num_threads(max(1, cores() - 1))
    stop, memory, feeding = StopRequest(), PeakMemory(), FeedProcess(feed)
    watch = _Watch(options.run_dir, feeding, stop, until=feed.until if options.images else 0.0)
    with (
        stop,  # from here on: a signal before the learner looks for one would leave the ingest side behind
        repeated(memory.look, every_s=0.5),
        feeding,
        repeated(watch.look, every_s=0.2),
    ):
        summary = learn(str(stream), options.run_dir, config, wait=True, stop=stop, out=out)
        feeding.stop()
        if feeding.failed():
            raise OpsError("the ingest side of the demo has failed: its message stands above")
        ingest = feeding.report()
    return DemoRun(
        options=options, config=config, stream=stream, picture_px=feed.size, summary=summary, ingest=ingest,
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
    # A killed demo left its server running; without its directory no process could find it again.
    EmbeddedRedis(run_dir).end_left_over()
    shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    return True


@contextlib.contextmanager
def repeated(look: Callable[[], bool], *, every_s: float) -> Iterator[None]:
    """Call `look` from a thread again and again, until it says that it is over or the context is left."""
    left = threading.Event()

    def repeat() -> None:
        while not look() and not left.wait(every_s):
            pass

    thread = threading.Thread(target=repeat, name="demo-look", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


class PeakMemory:
    """The most memory that this process and its descendants took together at any look.

    A page that processes share counts once: each is given its part (PSS; where the system does not say it,
    the pages that are a process's own, or at least its resident ones).
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.peak_processes = 0
        """Processes at that moment."""
        self._own = psutil.Process()

    def look(self) -> bool:
        """Measure once; never over."""
        taken = []
        for process in (self._own, *self._own.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                taken.append(_taken(process))
        if sum(taken) > self.peak_bytes:
            self.peak_bytes, self.peak_processes = sum(taken), len(taken)
        return False


def _taken(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.AccessDenied:  # macOS tells of children only to root
        return int(process.memory_info().rss)
    return int(getattr(memory, "pss", memory.uss))


class _Watch:
    """Looks at both sides while the learner has the main thread.

    Ends the learner when the ingest has failed (it would wait for records without end), when the time is over
    on a machine so slow that the last records take too long, and when passes over given images have used it.

    Args:
        run_dir: of the demo.
        feeding: the ingest side.
        stop: ends the learner.
        until: Unix time up to which given images are read again; 0 = they are read once.
    """

    def __init__(self, run_dir: Path, feeding: FeedProcess, stop: StopRequest, *, until: float) -> None:
        self.time_used = False
        """The time of passes over given images was over, and that ended the learner."""
        self.live_page = ""
        """Where the live page is; empty until it is served."""
        self._run_dir, self._feeding, self._stop, self._until = run_dir, feeding, stop, until
        self._ended: float | None = None

    def look(self) -> bool:
        """Note where the live page is; True when the learner was asked to end."""
        if not self.live_page:
            place = read_json(self._run_dir / "server.json") or {}
            self.live_page = place.get("url", "") if place.get("pid") == os.getpid() else ""
        if self._ended is None and self._feeding.ended():
            self._ended = time.monotonic()
        late = self._ended is not None and time.monotonic() - self._ended > _GRACE_S
        late = late and time.time() >= self._until
        failed = self._feeding.failed()
        if late and not failed:
            self.time_used = self._until > 0 and not self._stop.requested()
        if late or failed:
            self._stop.ask()
        return late or failed


def _is_free(host: str, port: int) -> bool:
    """Whether a port can be taken now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
