"""What the first rank writes into the run directory while a run goes on: checkpoints, and the summary."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ops.config.schema import RunConfig
from ops.rundir.checkpoint import Checkpoint, load_newest
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.files import RunRecord, room_in, write_json
from ops.rundir.summary import FINISHED, Progress, RunSummary
from ops.snapshots.types import PublishResult
from ops.train.events import CheckpointResult, Ended, Leaving, Notice, Saving
from ops.train.reporting import RunReporter
from stream.cursor import Cursor

logger = logging.getLogger(__name__)

# Longest time that a save which is due waits for the one before to end.
PATIENCE_S = 0.25


class RunSaver:
    """Saves one session of a run, whose directory this process has locked; one thread, the loop's.

    A full disk ends no run but at `flush` and `write_summary`.
    """

    def __init__(self, run_dir: Path, record: RunRecord, config: RunConfig, reporter: RunReporter) -> None:
        """Prepare.

        Args:
            run_dir: the run directory.
            record: which run it is.
            config: its settings.
            reporter: notified of every save; has the fence of the publisher.
        """
        self._run_dir, self._reporter = run_dir, reporter
        self._writer = CheckpointWriter(
            run_dir,
            record.uuid,
            keep=config.checkpoint.keep,
            on_result=lambda result, seconds: reporter.notify(CheckpointResult(result, seconds)),
        )
        self._held_up_s = 0.0
        self._left_out = 0

    def save(
        self,
        state: Mapping[str, Any],
        cursor: Cursor,
        progress: Progress,
        *,
        replay: Mapping[str, Tensor] | None,
        seconds: float,
        began: float,
    ) -> None:
        """Write a checkpoint in the background; waits for the one before.

        Args:
            state: of the learner.
            cursor: of the whole run, of the same moment.
            progress: what the run counts besides; gets the fence of the publisher.
            replay: members of all lanes; None without a memory for replay.
            seconds: spent on the run.
            began: by `time.monotonic`, when saving began: copying the state holds up the loop too.
        """
        epoch, version = self._reporter.snapshots.fence
        progress.snapshot_epoch = max(epoch, progress.snapshot_epoch)
        progress.snapshot_version = max(version, progress.snapshot_version)
        self._reporter.notify(Saving())
        self._writer.save(state, cursor, progress.saved(seconds=seconds), replay)
        self._held_up_s += time.monotonic() - began

    def is_free(self, samples: int) -> bool:
        """Whether a save now holds the loop up for no longer than copying; if not, it is counted.

        A disk on which checkpoints take longer than they are apart must not slow the learner down.
        """
        began = time.monotonic()
        free = self._writer.free(PATIENCE_S)
        self._held_up_s += time.monotonic() - began
        if not free:
            self._left_out += 1
            text = (
                f"none at {samples:,} samples: the one before is still being written ({self._left_out} left "
                "out so far); a larger checkpoint.every_samples, or a quicker disk"
            )
            self._reporter.notify(Notice("checkpoint", text))
            if self._left_out == 1:
                logger.warning("checkpoint: %s", text)
        return free

    def take_held_up_s(self) -> float:
        """Seconds for which saving held up the loop since this was last called."""
        held_up_s, self._held_up_s = self._held_up_s, 0.0
        return held_up_s

    def failed(self) -> bool:
        """Whether the newest save could not be written; waits for one in flight."""
        return self._writer.failed()

    def flush(self) -> Path | None:
        """Wait for the save in flight; the newest checkpoint written here.

        Raises:
            CheckpointFailed: it could not be written.
        """
        return self._writer.flush()

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from after an update that was refused."""
        self._writer.settle()
        return load_newest(self._run_dir, set_aside=True)

    def finish_publishing(self) -> PublishResult | None:
        """Publish what still waits; the newest snapshot that stands in Redis."""
        return self._reporter.snapshots.finish()

    def write_summary(self, summary: RunSummary, *, stopped_by_user: bool = False) -> None:
        """Write how the run ended, after the stream knows what may go.

        Args:
            summary: of the run.
            stopped_by_user: a user ended it, and no scheduler that would have to bring it back.
        """
        finished = summary.status == FINISHED
        self._reporter.notify(Leaving(finished))
        with room_in(self._run_dir):
            write_json(self._run_dir / "summary.json", summary.to_json())
        if finished or stopped_by_user:
            self._reporter.notify(Ended())
