"""What the first rank does for all: checkpoints, history, progress line, and telling who follows the run."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from learner.report import Snapshot, StepReport
from ops.config.schema import RunConfig
from ops.followers import Followers
from ops.opening import Opened, write_changes
from ops.pace import Pace
from ops.progress import ProgressLine
from ops.rundir.checkpoint import Checkpoint, load_newest
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.files import room_in, write_json
from ops.rundir.history import History, entry_of
from ops.rundir.lock import RunClaim
from ops.rundir.summary import FINISHED, Progress, Summary
from ops.snapshots.types import PublishResult
from ops.steps import Waiting
from stream.batch import Batch
from stream.cursor import Cursor

logger = logging.getLogger(__name__)

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
