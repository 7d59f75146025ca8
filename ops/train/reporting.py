"""The reporter of a run: it hands on to every listener what happens in the loop.

Nothing here is read at a resume, and nothing here can end a run: a Redis that is away, a full disk or a
browser that hangs is a warning and a metric. Only a port in use is refused, at the start.
"""
# ruff: noqa: D102  an overriding method is documented in StepListener

import contextlib
import logging
from types import TracebackType
from typing import Self, TextIO

from learner.report import Snapshot
from ops.errors import OpsError
from ops.rundir.summary import Progress
from ops.snapshots.types import PublishResult
from ops.train.listeners import (
    HistoryFile,
    LivePage,
    LiveState,
    MetricsExport,
    PageFiles,
    ProgressOutput,
    ReportedRun,
    SnapshotPublishing,
    StepDone,
    StepListener,
    StreamReader,
)
from ops.train.progress import ProgressLine
from ops.train.sync import Waiting
from stream.cursor import Cursor
from stream.lanes import LaneStats

logger = logging.getLogger(__name__)


class RunReporter(StepListener):
    """Tells all listeners of one session of a run; a context, entered before the stream is read.

    Entering opens the HTTP port and may raise PortInUse. The other methods take well under a millisecond
    together, apart from `snapshots.finish` and the one step that fills the reference images (14 MB are
    written), and raise nothing for the world.
    """

    def __init__(self, run: ReportedRun, out: TextIO) -> None:
        """Prepare; nothing is opened yet.

        Args:
            run: what is reported.
            out: where progress is written.
        """
        self.line = ProgressLine(out, total=run.total_samples)
        files, metrics = PageFiles(run), MetricsExport(run)
        state = LiveState(run, files.exemplars)
        files.keep_usage(state.live.prototypes.history, samples=run.samples)
        self.metrics, self.live = metrics.metrics, state.live
        self.page = LivePage(run, self.live, self.metrics)
        self.snapshots = SnapshotPublishing(run, self)
        # Told in this order, and closed in the opposite one.
        self._listeners: list[StepListener] = [
            self.page,
            metrics,
            state,
            files,
            StreamReader(run),
            self.snapshots,
            ProgressOutput(run, self.line),
            HistoryFile(run, self.line),
        ]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for listener in self._listeners:
                stack.callback(_close, listener)
                listener.open()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def on_start(self, progress: Progress, *, samples: int) -> None:
        for listener in self._listeners:
            listener.on_start(progress, samples=samples)

    def on_step(self, step: StepDone) -> None:
        for listener in self._listeners:
            listener.on_step(step)

    def on_waiting(self, waiting: Waiting, *, samples: int) -> None:
        for listener in self._listeners:
            listener.on_waiting(waiting, samples=samples)

    def on_rewind(self, cursor: Cursor) -> None:
        for listener in self._listeners:
            listener.on_rewind(cursor)

    def on_left_out(self, stats: LaneStats, cursor: Cursor) -> None:
        for listener in self._listeners:
            listener.on_left_out(stats, cursor)

    def on_not_finite(self, text: str) -> None:
        for listener in self._listeners:
            listener.on_not_finite(text)

    def on_saving(self) -> None:
        for listener in self._listeners:
            listener.on_saving()

    def on_checkpoint(self, result: str, *, seconds: float = 0.0, detail: str = "") -> None:
        for listener in self._listeners:
            listener.on_checkpoint(result, seconds=seconds, detail=detail)

    def on_snapshot(self, snapshot: Snapshot, *, samples: int, updates: int) -> None:
        for listener in self._listeners:
            listener.on_snapshot(snapshot, samples=samples, updates=updates)

    def on_published(self, result: PublishResult) -> None:
        for listener in self._listeners:
            listener.on_published(result)

    def on_event(self, kind: str, text: str, *, note: bool = False) -> None:
        for listener in self._listeners:
            listener.on_event(kind, text, note=note)

    def on_stopping(self) -> None:
        for listener in self._listeners:
            listener.on_stopping()

    def on_leaving_stream(self, *, finished: bool) -> None:
        for listener in self._listeners:
            listener.on_leaving_stream(finished=finished)

    def on_ended(self) -> None:
        for listener in self._listeners:
            listener.on_ended()


def _close(listener: StepListener) -> None:
    """Close a listener at the very end, when the run is saved and summed up: trouble is only a warning."""
    try:
        listener.close()
    except (OpsError, OSError) as error:
        logger.warning("while the run was being left: %s", error)
