"""How far an ingest is, for people on stderr: a line that renews itself, or one every few seconds."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ops.train.progress import ProgressLine, time_left

if TYPE_CHECKING:
    from ingest.rejects import Reject
    from ingest.sources import FileSource
    from ingest.worker import IngestReport
    from ops.monitoring.metrics import IngestMetrics

LOG_S = 5.0
"""Between two lines in a log; an ingest that is done sooner writes none."""


class IngestProgress:
    """Takes the reports of one ingest; not thread-safe. Total and time left are shown once they are known."""

    def __init__(self, source: "FileSource", *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start counting what the source has, in a thread of its own: it must not hold up the first image."""
        self._source = source
        self._clock = clock
        self._line = ProgressLine(sys.stderr, total=None, clock=clock, log_s=LOG_S)
        self._quiet_until = clock() + (0.0 if sys.stderr.isatty() else LOG_S)
        self._began: tuple[float, int] | None = None
        self._metrics: IngestMetrics | None = None
        source.measure()

    def serve(self, port: int | None) -> None:
        """Also show the accounts to Prometheus, where that is wanted."""
        if port is None:
            return
        from ops.monitoring.metrics import IngestMetrics

        self._metrics = IngestMetrics()
        self._line.note(f"metrics {self._metrics.serve(port)}")

    def __call__(self, report: "IngestReport") -> None:
        """Show a report; also why an ingest waits."""
        if self._metrics is not None:
            self._metrics.show(report)
        running = report.status == "running"
        due = self._line.due(report.found)
        far = self._how_far()
        if due and (not running or self._clock() >= self._quiet_until):
            self._line.say(
                f"{report.found:,} found  {self._line.rate(report.found):,.0f}/s  "
                f"{report.written:,} written  {report.found - report.written:,} skipped  "
                f"{report.shards:,} shards  {report.bytes / 1e6:,.1f} MB{far}"
                + ("" if running else f"  {report.status}")
            )

    def rejected(self, reject: "Reject") -> None:
        """Name a file that is rejected."""
        detail = f" ({reject.detail})" if reject.detail else ""
        self._line.note(f"rejected: {reject.reason}: {reject.source}{detail}")

    def end(self) -> None:
        """Leave the line standing and close what is open."""
        self._line.end()
        if self._metrics is not None:
            self._metrics.close()

    def _how_far(self) -> str:
        """Share of the source's bytes that are read, and the time for the rest at the rate of this start."""
        reached, total = self._source.reached, self._source.total
        now = self._clock()
        if self._began is None:
            self._began = (now, reached)
        if not total:
            return ""
        since, first = self._began
        share = f"  {100 * min(reached / total, 1):.0f} % of {total / 1e6:,.1f} MB read"
        if reached <= first or now <= since:
            return share
        return f"{share}, {time_left(max(total - reached, 0) * (now - since) / (reached - first))} left"
