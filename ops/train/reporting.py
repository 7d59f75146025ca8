"""The reporter of a run: it hands on to every listener what happens in the loop.

Nothing here is read at a resume, and nothing here can end a run: a Redis that is away, a full disk or a
browser that hangs is a warning and a metric. Only a port in use is refused, at the start.
"""

import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from ops.errors import OpsError
from ops.train.events import Event, StepListener
from ops.train.listeners import (
    HistoryFile,
    LivePage,
    LiveState,
    MetricsExport,
    PageFiles,
    ReportedRun,
    SnapshotPublishing,
    Terminal,
)
from ops.train.progress import ProgressLine
from ops.train.stream_registration import StreamRegistration

logger = logging.getLogger(__name__)


class RunReporter:
    """Tells all listeners of one session of a run; a context, entered before the stream is read.

    Entering opens the HTTP port and may raise PortInUse. `notify` takes well under a millisecond, but for
    what single listeners say of themselves.
    """

    def __init__(self, run: ReportedRun, out: TextIO) -> None:
        """Prepare; nothing is opened yet.

        Args:
            run: what is reported.
            out: where progress is written.
        """
        self.line = ProgressLine(out, total=run.total_samples)
        files, export = PageFiles(run), MetricsExport(run)
        state = LiveState(run, files.exemplars)
        files.keep_usage(state.live.prototypes.history, samples=run.samples)
        self.metrics, self.live = export.metrics, state.live
        self.page = LivePage(run, self.live, self.metrics)
        self.snapshots = SnapshotPublishing(run, self)
        self._stream = StreamRegistration(run.run_dir, run.record, passes=run.config.passes)
        self._listeners: tuple[StepListener, ...] = (
            export,
            state,
            files,
            self.page,
            self._stream,
            self.snapshots,
            Terminal(run, self.line),
            HistoryFile(run, self.line),
        )
        self._stack = contextlib.ExitStack()

    def notify(self, event: Event) -> None:
        """Tell every listener, in their order."""
        for listener in self._listeners:
            listener.notify(event)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for close in (self.page.close, self._stream.close, self.snapshots.close):
                stack.callback(_quietly, close)
            self.page.open()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class NoReporter:
    """Of all ranks but the first: the events of a run are the same on all of them."""

    def notify(self, event: Event) -> None:
        """Nothing."""


def _quietly(close: Callable[[], None]) -> None:
    """Close something at the very end, when the run is saved and summed up: trouble is only a warning."""
    try:
        close()
    except (OpsError, OSError) as error:
        logger.warning("while the run was being left: %s", error)
