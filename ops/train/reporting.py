"""What follows a run and is told afterwards: metrics, live page, typical images, snapshots, the stream.

Nothing here is read at a resume, and nothing here can end a run: a Redis that is away, a disk that takes no
picture or a browser that hangs is a warning and a metric. Only a port in use is refused, at the start.

How the loop of a run goes, beside what the learner reports.

What the first rank does for all: checkpoints, history, progress line, and telling who follows the run.
"""

import contextlib
import importlib.metadata
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from learner.report import Snapshot, StepReport
from ops.config.schema import RunConfig
from ops.distributed.environment import launched
from ops.errors import OpsError
from ops.live_page.exemplars import KeptFiles
from ops.live_page.server import Server
from ops.live_page.state import LiveView
from ops.monitoring.metrics import Metrics
from ops.rundir.checkpoint import Checkpoint, load_newest
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.files import RunRecord, read_json, room_in, write_json
from ops.rundir.history import History, entry_of
from ops.rundir.lock import RunClaim
from ops.rundir.stream_registration import Registration
from ops.rundir.summary import FINISHED, Progress, Summary
from ops.snapshots.publisher import Publisher, start_publisher
from ops.snapshots.types import PublishResult
from ops.train.progress import ProgressLine
from ops.train.resume import Opened, write_changes
from ops.train.sync import Waiting
from stream.cursor import Cursor
from stream.lanes import LaneLag, LaneStats
from stream.loader.batch import Batch


@dataclass(kw_only=True, slots=True)
class Pace:
    """How the loop goes, beside what the learner reports."""

    step_s: float
    """From the end of the step before to the end of this one."""
    load_s: float
    """Part of it that was spent waiting for the batch and its replays."""
    save_s: float = 0.0
    """Part of it for which a checkpoint held up the loop; most of its writing goes on in the background."""
    replays: int
    """Updates of the step beside that of the arriving batch."""
    lag: int
    """Records committed but not yet used, as of the last look."""
    restarts: int
    """Reader processes replaced so far."""
    lanes: Sequence[LaneLag] = ()
    """How far each lane is behind, as of the last look."""
    dead_letters: tuple[int, int] = (0, 0)
    """Sent and dropped so far, by this rank."""


logger = logging.getLogger(__name__)

# Longest wait for the last snapshot to be published, seconds: less than what supervisors allow after SIGTERM.
PUBLISH_S = 20.0
# Longest wait, once all is saved, for monitoring to see that the run is over: more than its usual pause.
LAST_LOOK_S = 65.0


class Followers:
    """Everything that watches one life of a run; a context, entered before the stream is read.

    Entering opens the HTTP port and may raise PortInUse. All other methods are called by the loop's thread
    (`checkpointed` also by the thread that writes checkpoints), take well under a millisecond apart from
    `finish` and the one step that fills the probe set (14 MB are written), and raise nothing for the world.
    """

    def __init__(
        self,
        run_dir: Path,
        record: RunRecord,
        config: RunConfig,
        *,
        samples: int,
        skipped: Mapping[str, int],
        history: Iterable[Mapping[str, Any]],
        total_samples: int | None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            run_dir: the run directory.
            record: which run it is.
            config: its settings.
            samples: where the run goes on from.
            skipped: records skipped until there, by reason.
            history: entries of the run's earlier life, for the live page.
            total_samples: length of the run; None when it has no known end.
        """
        self.url = ""
        """Where the live page is; empty when none is served."""
        self._run_dir, self._record, self._config = run_dir, record, config
        self._samples, self._left_out = samples, sum(skipped.values())
        self._registration: Registration | None = None
        self._files = KeptFiles(run_dir, config)
        self.metrics = Metrics(
            version=importlib.metadata.version("swavstream"),
            run=record.uuid,
            config_hash=config.digest(),
            snapshot_every_samples=config.snapshot.every_samples,
            start_samples=samples,
        )
        self.live = LiveView(
            run=record.uuid,
            run_dir=str(run_dir),
            prototypes=config.swav.prototypes[0],
            facts={
                "network": config.model.backbone,
                "batch": f"{config.batch} = {config.lanes} lanes x {config.chunk}",
                "stream": record.stream,
            },
            total_samples=total_samples,
            samples=samples,
            skipped=skipped,
            exemplars=self._files.exemplars,
        )
        self._files.keep_usage(self.live.prototypes.history, samples=samples)
        team = launched()
        if team is not None:
            self.live.ranks = team.ranks
            if team.life:
                self.live.event("restart", f"the launcher started the ranks anew (time {team.life})")
        if samples:
            self.live.event("resumed", f"the run goes on from {samples:,} samples")
        for entry in history:
            self.live.remember(entry)
        self._stack = contextlib.ExitStack()
        self._publisher: Publisher | None = None
        self._over = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            server = self._config.server
            if server.port >= 0:
                http = Server(self.live, self.metrics, host=server.host, port=server.port)
                self.url = http.start()
                stack.callback(_quietly, lambda: self._close_port(http))
                place = {"url": self.url, "pid": os.getpid(), "host": socket.gethostname()}
                write_json(self._run_dir / "server.json", place)
                stack.callback(_quietly, lambda: (self._run_dir / "server.json").unlink(missing_ok=True))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_publishing(self, progress: Progress) -> None:
        """Register with the stream; find Redis, or start the run's own, and publish in the background."""
        self.live.published_before = progress.snapshot_version
        kept = read_json(self._run_dir / "run.json") or {}
        self._registration = Registration(
            str(kept.get("stream", self._record.stream)),  # which may have moved since this was made
            self._record.uuid,
            self._run_dir,
            passes=self._config.passes,
        )
        self._registration.start()
        self._stack.callback(self._registration.close)
        self._publisher = start_publisher(
            self._run_dir,
            self._record,
            self._config,
            progress,
            on_result=self._published,
            on_warning=lambda sentence: self.event("redis", sentence),
            on_leaving=lambda close: self._stack.callback(_quietly, close),
        )
        self._stack.callback(self.finish, 0.5)

    def observe(self, report: StepReport, batch: Batch, pace: Pace) -> None:
        """A step was done: the report of its arriving batch, with the seconds and updates of the whole."""
        self._samples = report.samples
        self._read(self._left_out + sum(batch.stats.skipped.values()))
        self.metrics.waiting(False)
        self.metrics.ready(True)
        self.metrics.observe(
            report,
            batch.stats,
            step_s=pace.step_s,
            load_s=pace.load_s,
            save_s=pace.save_s,
            replays=pace.replays,
        )
        self.metrics.dead_letters(*pace.dead_letters)
        self.lanes(pace.lanes)
        self.metrics.lag(pace.lag)
        self.metrics.reader_restarts(pace.restarts)
        thumbs = None if batch.thumbs is None else batch.thumbs.numpy()
        self.live.observe(
            report,
            batch.stats,
            step_s=pace.step_s,
            lag=pace.lag,
            restarts=pace.restarts,
            keys=batch.keys,
            thumbs=thumbs,
        )
        self._files.observe(thumbs, batch.keys, samples=report.samples)

    def left_out(self, stats: LaneStats, *, skipped: Mapping[str, int]) -> None:
        """A batch was read but not learned from; `skipped` are all records skipped by the run, by reason."""
        self.metrics.records(stats)
        self._skipped(skipped)

    def skipped(self, skipped: Mapping[str, int]) -> None:
        """The run went back: so many records had been skipped where it goes on from."""
        self.live.event("rewind", "the run goes on from its last checkpoint")
        self._skipped(skipped)

    def lag(self, records: int) -> None:
        """Records committed but not yet used; also while the loop waits."""
        self.metrics.lag(records)
        self.live.lag(records)

    def lanes(self, lags: Sequence[LaneLag]) -> None:
        """How far each lane is behind; also while the loop waits."""
        self.metrics.lanes(lags)
        self.live.lanes(lags)

    def usage(self, usage_K: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """The shares of all prototypes; when a step brought a health report."""
        self.live.usage(usage_K)

    def waiting(self, yes: bool, reason: str = "") -> None:
        """The loop is alive, and waits for records, or for a batch that is being read."""
        if yes:
            self.live.state("waiting", reason)
        else:
            self.live.beat()
        self.metrics.waiting(yes)
        if self._registration is not None:
            self._registration.waiting(yes)

    def event(self, kind: str, text: str) -> None:
        """Something that people should see."""
        self.live.event(kind, text)

    def non_finite(self, text: str) -> None:
        """A step was refused because loss or gradient was not finite."""
        self.metrics.non_finite()
        self.live.event("not finite", text)

    def checkpointed(self, result: str, seconds: float = 0.0, detail: str = "") -> None:
        """A checkpoint was written (ok), could not be (error), or was found damaged (damaged)."""
        if result == "ok" and self._registration is not None:
            self._registration.checkpointed()
        self.metrics.checkpoint(result, seconds)
        self.live.checkpoint(result, samples=self._samples, seconds=seconds, detail=detail)
        if result == "ok":
            self._files.after_checkpoint()

    def checkpointing(self) -> None:
        """A checkpoint is about to be written: what must not be behind it is written first."""
        self._files.before_checkpoint()

    def publish(self, snapshot: Snapshot, *, samples: int, updates: int) -> None:
        """Hand a snapshot over; it is sent in the background."""
        directions, generation = snapshot.tensors["prototypes"], snapshot.tensors["generation"]
        self.live.prototypes.learned(directions.float().numpy(), generation.numpy(), samples=samples)
        if self._publisher is not None:
            self._publisher.publish(snapshot, samples=samples, updates=updates)

    @property
    def fence(self) -> tuple[int, int]:
        """Epoch and last version number of the publisher, for the checkpoint; zeros before it started."""
        return (self._publisher.epoch, self._publisher.version) if self._publisher is not None else (0, 0)

    def stopping(self) -> None:
        """The run ends: it is no longer ready."""
        self.metrics.ready(False)
        self.live.state("stopping")

    def ended(self) -> None:
        """The run is summed up and over as it should be: monitoring is told before the port closes."""
        self.metrics.ended(True)
        self._over = True

    def _close_port(self, http: Server) -> None:
        if self._over:
            http.await_scrape(LAST_LOOK_S)
        http.close()

    def finish(self, timeout_s: float | None = None) -> PublishResult | None:
        """Publish what still waits, within PUBLISH_S, and end; the newest snapshot that stands in Redis."""
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            return None
        publisher.close(PUBLISH_S if timeout_s is None else timeout_s)
        return publisher.last

    def leave_stream(self, *, finished: bool) -> None:
        """Tell the stream for the last time what the run still needs: nothing once it is finished.

        Before the run is announced as finished: a finished run is never opened again, so whoever is killed
        in between must not leave it in the register for ever.
        """
        if self._registration is not None:
            self._registration.close(finished=finished)

    def _skipped(self, skipped: Mapping[str, int]) -> None:
        self.live.skipped(skipped)
        self._read(sum(skipped.values()))

    def _read(self, left_out: int) -> None:
        """So many records were left out by now; with the samples, that is how far the run has read."""
        self._left_out = left_out
        if self._registration is not None:
            self._registration.used(self._samples + left_out)
            self._registration.waiting(False)

    def _published(self, result: PublishResult) -> None:
        self.metrics.published(result)
        self.live.published(result)
        if result.reseeded:
            some = ", ".join(map(str, result.reseeded[:8])) + (", ..." if len(result.reseeded) > 8 else "")
            self.event("reseed", f"v{result.version}: {len(result.reseeded)} prototypes began anew: {some}")


def _quietly(close: Callable[[], None]) -> None:
    """Let go of something at the very end, when the run is saved and summed up: trouble is only told."""
    try:
        close()
    except (OpsError, OSError) as error:
        logger.warning("while the run was being left: %s", error)


PATIENCE_S = 0.25
"""Longest time that a save which is due waits for the one before to end."""


class Keeper:
    """Keeps the run directory and the followers of one life of a run; one thread, the loop's.

    A full disk, a Redis that is away, a terminal that hangs: nothing here ends a run but `flush`.
    """

    def __init__(self, opened: Opened, *, claim: RunClaim, followers: Followers, line: ProgressLine) -> None:
        """Take a run directory over, which this process has locked.

        Args:
            opened: the run.
            claim: by which it is held.
            followers: who is told.
            line: the progress line.
        """
        self.run_dir, self.followers, self.line = opened.run_dir, followers, line
        self._claim = claim
        self._config: RunConfig = opened.config
        self._writer = CheckpointWriter(
            self.run_dir,
            opened.record.uuid,
            keep=opened.config.checkpoint.keep,
            on_result=followers.checkpointed,
        )
        self._save_s = 0.0
        self._late = 0

    def started(self, opened: Opened, progress: Progress) -> None:
        """The learner is made, as it is asked for: write that down, and tell the world.

        Args:
            opened: the run, with what is changed from here on.
            progress: with the fence that the publisher goes on from.
        """
        self._claim.begun()
        with room_in(self.run_dir):
            write_changes(opened)
        (self.run_dir / "summary.json").unlink(missing_ok=True)
        self.followers.start_publishing(progress)

    def begin(self, samples: int) -> None:
        """The run goes on from so many samples: what the history says of later ones did not happen."""
        self._history = History(self.run_dir / "history.jsonl", samples=samples)

    def save(
        self, state: Mapping[str, Any], cursor: Cursor, progress: Progress, *, seconds: float, began: float
    ) -> None:
        """Write a checkpoint in the background; waits for the one before.

        Args:
            state: of the learner.
            cursor: of the whole run, of the same moment.
            progress: what the run counts besides; gets the fence of the publisher.
            seconds: spent on the run.
            began: by `time.monotonic`, when saving began: copying the state holds up the loop too.
        """
        epoch, version = self.followers.fence
        progress.snapshot_epoch = max(epoch, progress.snapshot_epoch)
        progress.snapshot_version = max(version, progress.snapshot_version)
        self.followers.checkpointing()
        self._writer.save(state, cursor, progress.saved(seconds=seconds))
        self._save_s += time.monotonic() - began

    def saved_on_request(self, samples: int) -> None:
        """A signal asked for a save, and all up to these samples is saved, or being written."""
        text = f"saved at {samples:,} samples, as a signal asked"
        self.line.note(text)
        self.followers.event("checkpoint", text)

    def free_to_save(self, samples: int) -> bool:
        """Whether a save now holds the loop up for no longer than copying; if not, it is counted and told.

        A disk on which checkpoints take longer than they are apart must not slow the learner down.
        """
        began = time.monotonic()
        free = self._writer.free(PATIENCE_S)
        self._save_s += time.monotonic() - began
        if not free:
            self._late += 1
            text = (
                f"none at {samples:,} samples: the one before is still being written ({self._late} left out "
                "so far); a larger checkpoint.every_samples, or a quicker disk"
            )
            self.followers.event("checkpoint", text)
            if self._late == 1:
                logger.warning("checkpoint: %s", text)
        return free

    def save_failed(self) -> bool:
        """Whether the newest save could not be written; waits for one in flight."""
        return self._writer.failed()

    def flush(self) -> Path | None:
        """Wait for the save in flight; the newest checkpoint written here.

        Raises:
            CheckpointFailed: it could not be written.
        """
        return self._writer.flush()

    def go_back(self) -> Checkpoint | None:
        """The checkpoint to go on from after an update that was refused."""
        self._writer.settle()
        return load_newest(self.run_dir, set_aside=True)

    def publish(self, snapshot: Snapshot, *, samples: int, updates: int) -> None:
        """Hand the prototypes of this moment to whoever uses them."""
        self.followers.publish(snapshot, samples=samples, updates=updates)

    def waiting(self, waiting: Waiting, *, samples: int) -> None:
        """Not all ranks are ready: a sign of life, and what is waited for."""
        self.followers.waiting(waiting.records)
        if waiting.records:
            self.followers.lag(waiting.lag)
            self.followers.lanes(waiting.lanes)
            if self.line.due(samples):
                self.line.say(f"{samples:,} samples  waiting for records")

    def warn(self, text: str) -> None:
        """Something that people should see, and the run survives."""
        self.line.note(text)
        self.followers.event("waiting", text)

    def observe(
        self,
        report: StepReport,
        batch: Batch,
        pace: Pace,
        *,
        steps: int,
        seconds: float,
        usage_K: np.ndarray[Any, np.dtype[np.float32]] | None,
    ) -> None:
        """A step was done.

        Args:
            report: of its arriving batch, with the seconds and updates of the whole.
            batch: the arriving batch, with the account of the whole over all ranks.
            pace: how the loop goes, without the time for saving.
            steps: done so far.
            seconds: spent on the run.
            usage_K: shares of all prototypes, when the step brought a health report.
        """
        pace.save_s, self._save_s = self._save_s, 0.0
        self.followers.observe(report, batch, pace)
        if usage_K is not None:
            self.followers.usage(usage_K)
        due = self.line.due(report.samples)
        if self._history.due(report.samples):
            rate = self.line.rate(report.samples)
            self._history.add(entry_of(report, steps=steps, seconds=seconds, rate=rate, lag=pace.lag))
        if due:
            self.line.show(
                samples=report.samples,
                loss=report.loss,
                over_ln_k=report.loss_over_ln_k,
                usage=report.usage_perplexity,
                k=self._config.swav.prototypes[0],
                lag=pace.lag,
            )

    def finish(self) -> PublishResult | None:
        """Publish what still waits; the newest snapshot that stands in Redis."""
        return self.followers.finish()

    def sum_up(self, summary: Summary, *, by_hand: bool = False) -> None:
        """Write how the run ended, after the stream knows what may go.

        Args:
            summary: of the run.
            by_hand: somebody ended it, and no scheduler that would have to bring it back.
        """
        self.followers.leave_stream(finished=summary.status == FINISHED)
        with room_in(self.run_dir):
            write_json(self.run_dir / "summary.json", summary.to_json())
        if summary.status == FINISHED or by_hand:
            self.followers.ended()
