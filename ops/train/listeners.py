"""What listens to a run: metrics, live page, files of the page, stream, snapshots, terminal, history.

A new listener is a class here, and a line in `ops.train.reporting.RunReporter`.
"""

import contextlib
import importlib.metadata
import logging
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from ops.config.schema import RunConfig
from ops.distributed.environment import launched
from ops.live_page.exemplars import Exemplars
from ops.live_page.server import Server
from ops.live_page.state import LiveView
from ops.live_page.usage_history import UsageHistory
from ops.monitoring.catalog import entry_of
from ops.monitoring.metrics import Metrics
from ops.rundir.files import RunRecord, read_lines, write_json
from ops.rundir.history import History
from ops.snapshots.probe_images import ProbeSet
from ops.snapshots.publisher import Publisher, start_publisher
from ops.snapshots.types import PublishResult, SnapshotTaken
from ops.train.events import (
    CheckpointResult,
    Ended,
    Event,
    LeftOut,
    Notice,
    Rewound,
    Saving,
    Started,
    StepDone,
    StepListener,
    StepRefused,
    Stopping,
    Waiting,
)
from ops.train.progress import ProgressLine
from stream.cursor import Cursor

logger = logging.getLogger(__name__)

# Longest wait, once all is saved, for monitoring to see that the run is over: more than its usual pause.
LAST_SCRAPE_S = 65.0
PUBLISH_S = 20.0
"""Longest wait for the last snapshot to be published, seconds: less than supervisors allow after SIGTERM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedRun:
    """What is known of a run before its stream is read."""

    run_dir: Path
    record: RunRecord
    config: RunConfig
    cursor: Cursor | None = None
    """Where it goes on from; None begins."""
    total_samples: int | None = None
    """Length of the run; None when it has no known end."""
    publish_s: float = PUBLISH_S
    """Longest wait for the last snapshot to be published, seconds."""

    @property
    def samples(self) -> int:
        """Where the run goes on from."""
        return self.cursor.samples if self.cursor is not None else 0


class MetricsExport:
    """Prometheus."""

    def __init__(self, run: ReportedRun) -> None:
        self.metrics = Metrics(
            version=importlib.metadata.version("swavstream"),
            run=run.record.uuid,
            config_hash=run.config.digest(),
            snapshot_every_samples=run.config.snapshot.every_samples,
            start_samples=run.samples,
        )

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        metrics = self.metrics
        match event:
            case StepDone():
                self._step(event)
            case Waiting(records=records, lag=lag, lanes=lanes):
                metrics.waiting(records)
                if records and lag is not None:
                    metrics.lag(lag)
                    metrics.lanes(lanes)
            case LeftOut(stats=stats):
                metrics.records(stats)
            case StepRefused():
                metrics.non_finite()
            case CheckpointResult(result=result, seconds=seconds):
                metrics.checkpoint(result, seconds)
            case PublishResult():
                metrics.published(event)
            case Stopping():
                metrics.ready(False)
            case Ended():
                metrics.ended(True)

    def _step(self, step: StepDone) -> None:
        self.metrics.waiting(False)
        self.metrics.ready(True)
        self.metrics.observe(step.report, step.stats, replays=step.replays, **asdict(step.timings))
        if step.replay_prototypes is not None:
            self.metrics.replay_memory(step.replay_prototypes)
        self.metrics.dead_letters(*step.dead_letters)
        self.metrics.lanes(step.lanes)
        self.metrics.lag(step.lag)
        self.metrics.reader_restarts(step.reader_restarts)


class LiveState:
    """The state behind the live page."""

    def __init__(self, run: ReportedRun, exemplars: Exemplars | None) -> None:
        self._samples, config = run.samples, run.config
        self.live = LiveView(
            run=run.record.uuid,
            run_dir=str(run.run_dir),
            prototypes=config.swav.prototypes[0],
            facts={
                "network": config.model.backbone,
                "batch": f"{config.batch} = {config.lanes} lanes x {config.chunk}",
                "stream": run.record.stream,
            },
            total_samples=run.total_samples,
            samples=run.samples,
            skipped=run.cursor.skipped if run.cursor is not None else {},
            exemplars=exemplars,
        )
        team = launched()
        if team is not None:
            self.live.ranks = team.world_size
            if team.restarts:
                self.live.event("restart", f"the launcher started the ranks again (time {team.restarts})")
        if run.samples:
            self.live.event("resumed", f"the run goes on from {run.samples:,} samples")
        for entry in read_lines(run.run_dir / "history.jsonl"):
            if entry.get("samples", 0) <= run.samples:
                self.live.remember(entry)

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        live = self.live
        match event:
            case Started(progress=progress):
                live.published_before = progress.snapshot_version
            case StepDone():
                self._step(event)
            case Waiting():
                self._waiting(event)
            case Rewound(cursor=cursor):
                live.event("rewind", "the run goes on from its last checkpoint")
                live.skipped(cursor.skipped)
            case LeftOut(cursor=cursor):
                live.skipped(cursor.skipped)
            case StepRefused(text=text):
                live.event("not finite", text)
            case CheckpointResult(result=result, seconds=seconds, detail=detail):
                live.checkpoint(result, samples=self._samples, seconds=seconds, detail=detail)
            case SnapshotTaken(snapshot=shot, samples=samples):
                directions, generation = shot.tensors["prototypes"], shot.tensors["generation"]
                live.prototypes.learned(directions.float().numpy(), generation.numpy(), samples=samples)
            case PublishResult():
                self._published(event)
            case Notice(kind=kind, text=text):
                live.event(kind, text)
            case Stopping():
                live.state("stopping")

    def _step(self, step: StepDone) -> None:
        self._samples = step.report.samples
        self.live.lanes(step.lanes)
        self.live.observe(
            step.report,
            step.stats,
            step_s=step.timings.step_s,
            lag=step.lag,
            restarts=step.reader_restarts,
            keys=step.batch.keys,
            thumbs=step.thumbs,
        )
        if step.usage_K is not None:
            self.live.usage(step.usage_K)

    def _waiting(self, waiting: Waiting) -> None:
        if not waiting.records:  # only for readers, which is no state of its own
            self.live.beat()
            return
        self.live.state("waiting", waiting.reason)
        if waiting.lag is not None:
            self.live.lag(waiting.lag)
            self.live.lanes(waiting.lanes)

    def _published(self, result: PublishResult) -> None:
        self.live.published(result)
        if result.reseeded:
            some = ", ".join(map(str, result.reseeded[:8])) + (", ..." if len(result.reseeded) > 8 else "")
            text = f"v{result.version}: {len(result.reseeded)} prototypes re-seeded: {some}"
            self.live.event("reseed", text)


class LivePage:
    """The HTTP port with live page and metrics, and the file with its address."""

    def __init__(self, run: ReportedRun, live: LiveView, metrics: Metrics) -> None:
        self.url = ""
        """Where the live page is; empty when none is served."""
        self._place = run.run_dir / "server.json"
        self._ended = False
        host, port = run.config.server.host, run.config.server.port
        self._server = Server(live, metrics, host=host, port=port) if port >= 0 else None

    def open(self) -> None:
        """Open the port.

        Raises:
            PortInUse: it is taken.
        """
        if self._server is not None:
            self.url = self._server.start()
            write_json(self._place, {"url": self.url, "pid": os.getpid(), "host": socket.gethostname()})

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        self._ended = self._ended or isinstance(event, Ended)

    def close(self) -> None:
        """Close the port, after monitoring has seen that the run ended as it should."""
        if self._server is None:
            return
        try:
            if self.url:
                self._place.unlink(missing_ok=True)
            if self._ended:
                self._server.await_scrape(LAST_SCRAPE_S)
        finally:
            self._server.close()


class PageFiles:
    """Nearest images, usage over time and reference images, written beside the checkpoints.

    The one step that fills the reference images writes 14 MB. A disk that takes none is a warning.
    """

    def __init__(self, run: ReportedRun) -> None:
        self._pictures = run.run_dir / "exemplars.safetensors"
        self._usage_file = run.run_dir / "usage-history.safetensors"
        self._references = ProbeSet(run.run_dir)
        self._usage: UsageHistory | None = None
        self.exemplars: Exemplars | None = None
        """Nearest images; None when records come without thumbnails."""
        thumbnail = run.config.reader.thumbnail_px
        if thumbnail >= 8:
            self.exemplars = Exemplars(run.config.swav.prototypes[0], thumbnail_px=thumbnail)
            self.exemplars.load(self._pictures)

    def keep_usage(self, history: UsageHistory, *, samples: int) -> None:
        """Save this history from here on; it gets what the file holds until where the run goes on."""
        history.load(self._usage_file, samples=samples)
        self._usage = history

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        try:
            match event:
                case StepDone(report=report, batch=batch):
                    self._references.observe(event.thumbs, batch.keys, samples=report.samples)
                case Saving():  # reference images are never behind a checkpoint
                    self._references.save()
                case CheckpointResult(result="ok"):
                    if self._usage is not None:
                        self._usage.save(self._usage_file)
                    if self.exemplars is not None:
                        self.exemplars.save(self._pictures)
        except OSError as error:
            what = "what the live page shows" if isinstance(event, CheckpointResult) else "the probe set"
            logger.warning("%s could not be kept: %s", what, error)


class SnapshotPublishing:
    """Snapshots in Redis; its own server where the run is given none."""

    def __init__(self, run: ReportedRun, reporter: StepListener) -> None:
        """Prepare.

        Args:
            run: whose snapshots are published.
            reporter: notified of every result, and of dangerous settings of the server.
        """
        self._run, self._reporter = run, reporter
        self._publisher: Publisher | None = None
        self._stack = contextlib.ExitStack()

    @property
    def fence(self) -> tuple[int, int]:
        """Epoch and last version number of the publisher, for the checkpoint; zeros before it started."""
        return (0, 0) if self._publisher is None else (self._publisher.epoch, self._publisher.version)

    def notify(self, event: Event) -> None:
        """See `StepListener`; `Started` may block for as long as an own server takes to start."""
        match event:
            case Started(progress=progress):
                self._publisher = start_publisher(
                    self._run.run_dir,
                    self._run.record,
                    self._run.config,
                    progress,
                    on_result=self._reporter.notify,
                    on_warning=lambda sentence: self._reporter.notify(Notice("redis", sentence)),
                    on_leaving=self._stack.callback,
                )
            case SnapshotTaken():
                if self._publisher is not None:
                    self._publisher.publish(event)

    def finish(self, timeout_s: float | None = None) -> PublishResult | None:
        """Publish what still waits, within a time, and end; the newest snapshot that stands in Redis."""
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            return None
        publisher.close(self._run.publish_s if timeout_s is None else timeout_s)
        return publisher.last

    def close(self) -> None:
        """End, and let the server go."""
        with self._stack:
            self.finish(0.5)


class Terminal:
    """The progress line, and notes above it."""

    def __init__(self, run: ReportedRun, line: ProgressLine) -> None:
        self._line, self._prototypes = line, run.config.swav.prototypes[0]

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        match event:
            case StepDone(report=report, lag=lag):
                if self._line.due(report.samples):
                    self._line.show(
                        samples=report.samples,
                        loss=report.loss,
                        over_ln_k=report.loss_over_ln_k,
                        usage=report.usage_perplexity,
                        k=self._prototypes,
                        lag=lag,
                    )
            case Waiting(records=True, samples=samples, reason=reason):
                if self._line.due(samples):
                    self._line.say(reason or f"{samples:,} samples  waiting for records")
            case Notice(text=text, terminal=True):
                self._line.note(text)


class HistoryFile:
    """history.jsonl.

    Args:
        run: whose steps are written.
        line: knows the rate; hears of a step before this listener.
    """

    def __init__(self, run: ReportedRun, line: ProgressLine) -> None:
        self._path, self._line = run.run_dir / "history.jsonl", line
        self._history: History | None = None

    def notify(self, event: Event) -> None:
        """See `StepListener`."""
        match event:
            case Started(samples=samples):
                self._history = History(self._path, samples=samples)
            case Rewound(cursor=cursor):
                self._history = History(self._path, samples=cursor.samples)
            case StepDone(report=report):
                if self._history is not None and self._history.due(report.samples):
                    rate, steps = self._line.rate(report.samples), event.batch.cursor.steps
                    entry = entry_of(report, steps=steps, seconds=event.run_s, rate=rate, lag=event.lag)
                    self._history.add(entry)
