"""What happens in a run, and what listens: metrics, live page, files, stream, snapshots, history, terminal.

A new listener is a class here, and a line in `ops.train.reporting.RunReporter`.
"""
# ruff: noqa: D102  an overriding method is documented in StepListener

import contextlib
import importlib.metadata
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learner.report import Snapshot, StepReport
from ops.config.schema import RunConfig
from ops.distributed.environment import launched
from ops.live_page.exemplars import Exemplars
from ops.live_page.server import Server
from ops.live_page.state import LiveView
from ops.live_page.usage_history import UsageHistory
from ops.monitoring.metrics import Metrics
from ops.rundir.files import RunRecord, read_json, read_lines, write_json
from ops.rundir.history import History, entry_of
from ops.rundir.stream_registration import Registration
from ops.rundir.summary import Progress
from ops.snapshots.probe_images import ProbeSet
from ops.snapshots.publisher import Publisher, start_publisher
from ops.snapshots.types import PublishResult
from ops.train.progress import ProgressLine
from ops.train.sync import Waiting
from stream.batch import Batch
from stream.cursor import Cursor
from stream.lanes import LaneLag, LaneStats

logger = logging.getLogger(__name__)

# Longest wait, once all is saved, for monitoring to see that the run is over: more than its usual pause.
LAST_SCRAPE_S = 65.0
# Longest wait for the last snapshot to be published, seconds: less than what supervisors allow after SIGTERM.
PUBLISH_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimings:
    """How long a step took, seconds."""

    step_s: float = 0.0
    """From the end of the step before to the end of this one."""
    load_s: float = 0.0
    """Part of it that was spent waiting for the batch and its replays."""
    save_s: float = 0.0
    """Part of it for which a checkpoint held up the loop; most of its writing goes on in the background."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepDone:
    """A step of all ranks, as the first one knows it."""

    report: StepReport
    """Of the arriving batch, with the seconds and updates of the whole step."""
    batch: Batch
    """The arriving batch of this rank; its cursor is the run's."""
    stats: LaneStats
    """Account of the batch and its replays, over all ranks."""
    timings: StepTimings
    replays: int = 0
    """Updates of the step beside that of the arriving batch."""
    run_s: float = 0.0
    """Seconds spent on the run, over restarts."""
    lag: int = 0
    """Records committed but not yet used, as of the last look."""
    lanes: Sequence[LaneLag] = ()
    """How far each lane is behind, as of the last look."""
    reader_restarts: int = 0
    """Reader processes replaced so far."""
    dead_letters: tuple[int, int] = (0, 0)
    """Sent and dropped so far, by this rank."""
    usage_K: np.ndarray[Any, np.dtype[np.float32]] | None = None
    """Shares of all prototypes, when the step brought a health report."""


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

    @property
    def samples(self) -> int:
        """Where the run goes on from."""
        return self.cursor.samples if self.cursor is not None else 0


class StepListener:
    """Is told what happens in a run; a listener overrides what it wants to know, the rest does nothing.

    The loop's thread calls. `on_checkpoint` comes from the thread that writes checkpoints too, `on_published`
    and `on_event` from the one that publishes. Only `open` and `close` may block or raise.
    """

    def open(self) -> None:
        """The run directory is held; the stream is not read yet."""

    def close(self) -> None:
        """The run is left, whatever the reason."""

    def on_start(self, progress: Progress, *, samples: int) -> None:
        """The learner is made, and goes on from so many samples."""

    def on_step(self, step: StepDone) -> None:
        """A step was done."""

    def on_waiting(self, waiting: Waiting, *, samples: int) -> None:
        """Not all ranks are ready, several times a second: a sign of life, and what is waited for."""

    def on_rewind(self, cursor: Cursor) -> None:
        """The run went back to this cursor; later steps did not happen."""

    def on_left_out(self, stats: LaneStats, cursor: Cursor) -> None:
        """A batch was read but not learned from; the cursor is behind it."""

    def on_not_finite(self, text: str) -> None:
        """An update was refused because loss or gradient was not finite."""

    def on_saving(self) -> None:
        """A checkpoint is about to be written: what must not be behind it is written now."""

    def on_checkpoint(self, result: str, *, seconds: float = 0.0, detail: str = "") -> None:
        """A checkpoint was written (ok), could not be (error), or was found damaged (damaged)."""

    def on_snapshot(self, snapshot: Snapshot, *, samples: int, updates: int) -> None:
        """A snapshot was taken."""

    def on_published(self, result: PublishResult) -> None:
        """What became of a snapshot."""

    def on_event(self, kind: str, text: str, *, note: bool = False) -> None:
        """Something that a person should see; with `note` also in the terminal."""

    def on_stopping(self) -> None:
        """The last step is done; the run saves and publishes."""

    def on_leaving_stream(self, *, finished: bool) -> None:
        """The summary is about to be written, and is the last thing that is written of the run."""

    def on_ended(self) -> None:
        """The summary is written, and the run ended as it should: no scheduler has to bring it back."""


class MetricsExport(StepListener):
    """Prometheus."""

    def __init__(self, run: ReportedRun) -> None:
        self.metrics = Metrics(
            version=importlib.metadata.version("swavstream"),
            run=run.record.uuid,
            config_hash=run.config.digest(),
            snapshot_every_samples=run.config.snapshot.every_samples,
            start_samples=run.samples,
        )

    def on_step(self, step: StepDone) -> None:
        self.metrics.waiting(False)
        self.metrics.ready(True)
        self.metrics.observe(
            step.report,
            step.stats,
            step_s=step.timings.step_s,
            load_s=step.timings.load_s,
            save_s=step.timings.save_s,
            replays=step.replays,
        )
        self.metrics.dead_letters(*step.dead_letters)
        self.metrics.lanes(step.lanes)
        self.metrics.lag(step.lag)
        self.metrics.reader_restarts(step.reader_restarts)

    def on_waiting(self, waiting: Waiting, *, samples: int) -> None:
        """Some rank waits for records, or only for its readers."""
        self.metrics.waiting(waiting.records)
        if waiting.records and waiting.lag is not None:
            self.metrics.lag(waiting.lag)
            self.metrics.lanes(waiting.lanes)

    def on_left_out(self, stats: LaneStats, cursor: Cursor) -> None:
        """Its records were read all the same."""
        self.metrics.records(stats)

    def on_not_finite(self, text: str) -> None:
        self.metrics.non_finite()

    def on_checkpoint(self, result: str, *, seconds: float = 0.0, detail: str = "") -> None:
        self.metrics.checkpoint(result, seconds)

    def on_published(self, result: PublishResult) -> None:
        self.metrics.published(result)

    def on_stopping(self) -> None:
        self.metrics.ready(False)

    def on_ended(self) -> None:
        """No alert is due because this run sends no more."""
        self.metrics.ended(True)


class LiveState(StepListener):
    """The state behind the live page."""

    def __init__(self, run: ReportedRun, exemplars: Exemplars | None) -> None:
        self._samples = run.samples
        self.live = LiveView(
            run=run.record.uuid,
            run_dir=str(run.run_dir),
            prototypes=run.config.swav.prototypes[0],
            facts={
                "network": run.config.model.backbone,
                "batch": f"{run.config.batch} = {run.config.lanes} lanes x {run.config.chunk}",
                "stream": run.record.stream,
            },
            total_samples=run.total_samples,
            samples=run.samples,
            skipped=run.cursor.skipped if run.cursor is not None else {},
            exemplars=exemplars,
        )
        team = launched()
        if team is not None:
            self.live.ranks = team.ranks
            if team.life:
                self.live.event("restart", f"the launcher started the ranks again (time {team.life})")
        if run.samples:
            self.live.event("resumed", f"the run goes on from {run.samples:,} samples")
        for entry in read_lines(run.run_dir / "history.jsonl"):
            if entry.get("samples", 0) <= run.samples:
                self.live.remember(entry)

    def on_start(self, progress: Progress, *, samples: int) -> None:
        """The snapshot that was published last stands until there is another."""
        self.live.published_before = progress.snapshot_version

    def on_step(self, step: StepDone) -> None:
        self._samples = step.report.samples
        self.live.lanes(step.lanes)
        self.live.observe(
            step.report,
            step.stats,
            step_s=step.timings.step_s,
            lag=step.lag,
            restarts=step.reader_restarts,
            keys=step.batch.keys,
            thumbs=thumbs_of(step.batch),
        )
        if step.usage_K is not None:
            self.live.usage(step.usage_K)

    def on_waiting(self, waiting: Waiting, *, samples: int) -> None:
        """Waiting for readers is no state of its own."""
        if not waiting.records:
            self.live.beat()
            return
        self.live.state("waiting", waiting.reason)
        if waiting.lag is not None:
            self.live.lag(waiting.lag)
            self.live.lanes(waiting.lanes)

    def on_rewind(self, cursor: Cursor) -> None:
        """Records that were skipped after the cursor will be skipped again."""
        self.live.event("rewind", "the run goes on from its last checkpoint")
        self.live.skipped(cursor.skipped)

    def on_left_out(self, stats: LaneStats, cursor: Cursor) -> None:
        self.live.skipped(cursor.skipped)

    def on_not_finite(self, text: str) -> None:
        self.live.event("not finite", text)

    def on_checkpoint(self, result: str, *, seconds: float = 0.0, detail: str = "") -> None:
        self.live.checkpoint(result, samples=self._samples, seconds=seconds, detail=detail)

    def on_snapshot(self, snapshot: Snapshot, *, samples: int, updates: int) -> None:
        """Neighbours of prototypes are those of this moment."""
        directions, generation = snapshot.tensors["prototypes"], snapshot.tensors["generation"]
        self.live.prototypes.learned(directions.float().numpy(), generation.numpy(), samples=samples)

    def on_published(self, result: PublishResult) -> None:
        self.live.published(result)
        if result.reseeded:
            some = ", ".join(map(str, result.reseeded[:8])) + (", ..." if len(result.reseeded) > 8 else "")
            text = f"v{result.version}: {len(result.reseeded)} prototypes began anew: {some}"
            self.live.event("reseed", text)

    def on_event(self, kind: str, text: str, *, note: bool = False) -> None:
        self.live.event(kind, text)

    def on_stopping(self) -> None:
        self.live.state("stopping")


class LivePage(StepListener):
    """The HTTP port with live page and metrics, and the file that says where it is."""

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

    def on_ended(self) -> None:
        """The port stays until monitoring has seen that the run ended."""
        self._ended = True

    def close(self) -> None:
        """Close the port."""
        if self._server is None:
            return
        if self.url:
            self._place.unlink(missing_ok=True)
        if self._ended:
            self._server.await_scrape(LAST_SCRAPE_S)
        self._server.close()


class PageFiles(StepListener):
    """Nearest images, usage over time and reference images, beside the checkpoints."""

    def __init__(self, run: ReportedRun) -> None:
        self._pictures = run.run_dir / "exemplars.safetensors"
        self._usage_file = run.run_dir / "usage-history.safetensors"
        self._probe = ProbeSet(run.run_dir)
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

    def on_step(self, step: StepDone) -> None:
        """Images of the step may become reference images."""
        thumbs, keys, samples = thumbs_of(step.batch), step.batch.keys, step.report.samples
        self._try("the probe set", lambda: self._probe.observe(thumbs, keys, samples=samples))

    def on_saving(self) -> None:
        """Reference images are never behind a checkpoint."""
        self._try("the probe set", self._probe.save)

    def on_checkpoint(self, result: str, *, seconds: float = 0.0, detail: str = "") -> None:
        """What the live page shows goes with a checkpoint."""
        if result == "ok":
            self._try("what the live page shows", self._save)

    def _save(self) -> None:
        if self._usage is not None:
            self._usage.save(self._usage_file)
        if self.exemplars is not None:
            self.exemplars.save(self._pictures)

    def _try(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            logger.warning("%s could not be kept: %s", what, error)


class StreamReader(StepListener):
    """The entry of the run among the readers of its stream."""

    def __init__(self, run: ReportedRun) -> None:
        self._run = run
        self._registration: Registration | None = None

    def on_start(self, progress: Progress, *, samples: int) -> None:
        """Register. The stream may have moved since the run was opened: its address is read again."""
        run = self._run
        stream = str((read_json(run.run_dir / "run.json") or {}).get("stream", run.record.stream))
        self._registration = Registration(stream, run.record.uuid, run.run_dir, passes=run.config.passes)
        self._registration.start()

    def on_step(self, step: StepDone) -> None:
        self._used(step.batch.cursor)

    def on_rewind(self, cursor: Cursor) -> None:
        """The run reads again from here."""
        self._used(cursor)

    def on_left_out(self, stats: LaneStats, cursor: Cursor) -> None:
        self._used(cursor)

    def on_waiting(self, waiting: Waiting, *, samples: int) -> None:
        """A reader that waits holds no writer up."""
        if self._registration is not None:
            self._registration.waiting(waiting.records)

    def on_checkpoint(self, result: str, *, seconds: float = 0.0, detail: str = "") -> None:
        """Shards before the oldest checkpoint may go."""
        if result == "ok" and self._registration is not None:
            self._registration.checkpointed()

    def on_leaving_stream(self, *, finished: bool) -> None:
        """Write the last state; a finished run needs nothing any more.

        Before the summary is written: a finished run is not opened again, so one that is killed in between
        must not hold its shards for ever.
        """
        if self._registration is not None:
            self._registration.close(finished=finished)

    def close(self) -> None:
        """Write the last state."""
        self.on_leaving_stream(finished=False)

    def _used(self, cursor: Cursor) -> None:
        if self._registration is not None:
            self._registration.used(cursor.read)
            self._registration.waiting(False)


class SnapshotPublishing(StepListener):
    """Snapshots in Redis; its own server where the run is given none."""

    def __init__(self, run: ReportedRun, reporter: StepListener) -> None:
        """Prepare.

        Args:
            run: whose snapshots are published.
            reporter: told of every result, and of what is dangerous about the server.
        """
        self._run, self._reporter = run, reporter
        self._publisher: Publisher | None = None
        self._closing: list[Callable[[], None]] = []

    @property
    def fence(self) -> tuple[int, int]:
        """Epoch and last version number of the publisher, for the checkpoint; zeros before it started."""
        return (0, 0) if self._publisher is None else (self._publisher.epoch, self._publisher.version)

    def on_start(self, progress: Progress, *, samples: int) -> None:
        """Find Redis, or start the run's own."""
        self._publisher = start_publisher(
            self._run.run_dir,
            self._run.record,
            self._run.config,
            progress,
            on_result=self._reporter.on_published,
            on_warning=lambda sentence: self._reporter.on_event("redis", sentence),
            on_leaving=self._closing.append,
        )

    def on_snapshot(self, snapshot: Snapshot, *, samples: int, updates: int) -> None:
        if self._publisher is not None:
            self._publisher.publish(snapshot, samples=samples, updates=updates)

    def finish(self, timeout_s: float | None = None) -> PublishResult | None:
        """Publish what still waits, within PUBLISH_S, and end; the newest snapshot that stands in Redis."""
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            return None
        publisher.close(PUBLISH_S if timeout_s is None else timeout_s)
        return publisher.last

    def close(self) -> None:
        """End, and let the server go; trouble with one of them keeps none of the others."""
        with contextlib.ExitStack() as stack:
            for close in self._closing:
                stack.callback(close)
            self.finish(0.5)


class HistoryFile(StepListener):
    """history.jsonl."""

    def __init__(self, run: ReportedRun, line: ProgressLine) -> None:
        """Prepare.

        Args:
            run: whose steps are written.
            line: knows the rate; is told of a step first.
        """
        self._path, self._line = run.run_dir / "history.jsonl", line
        self._history: History | None = None

    def on_start(self, progress: Progress, *, samples: int) -> None:
        self._history = History(self._path, samples=samples)

    def on_rewind(self, cursor: Cursor) -> None:
        self._history = History(self._path, samples=cursor.samples)

    def on_step(self, step: StepDone) -> None:
        report = step.report
        if self._history is not None and self._history.due(report.samples):
            entry = entry_of(
                report,
                steps=step.batch.cursor.steps,
                seconds=step.run_s,
                rate=self._line.rate(report.samples),
                lag=step.lag,
            )
            self._history.add(entry)


class ProgressOutput(StepListener):
    """The progress line, and notes above it."""

    def __init__(self, run: ReportedRun, line: ProgressLine) -> None:
        self._line, self._prototypes = line, run.config.swav.prototypes[0]

    def on_step(self, step: StepDone) -> None:
        report = step.report
        if self._line.due(report.samples):
            self._line.show(
                samples=report.samples,
                loss=report.loss,
                over_ln_k=report.loss_over_ln_k,
                usage=report.usage_perplexity,
                k=self._prototypes,
                lag=step.lag,
            )

    def on_waiting(self, waiting: Waiting, *, samples: int) -> None:
        """The line says what is waited for."""
        if waiting.records and self._line.due(samples):
            self._line.say(waiting.reason or f"{samples:,} samples  waiting for records")

    def on_event(self, kind: str, text: str, *, note: bool = False) -> None:
        if note:
            self._line.note(text)


def thumbs_of(batch: Batch) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """[B, 3, T, T] thumbnails of a batch; None when records come without."""
    return None if batch.thumbs is None else batch.thumbs.numpy()
