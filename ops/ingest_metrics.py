"""What Prometheus sees of an ingest: its accounts as they stand, on a port of its own while it runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ops.errors import PortInUse
from ops.metric_table import INGEST, PREFIX

if TYPE_CHECKING:
    from ingest.worker import IngestReport


class IngestMetrics(Collector):
    """Serves the newest report of an ingest; counts are over all starts of its source, as the accounts are.

    `show` may be called from any thread and takes no time. Nothing is served before `serve`.
    """

    def __init__(self) -> None:
        self._report: IngestReport | None = None
        self._moved_at = 0.0
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def serve(self, port: int, host: str = "127.0.0.1") -> str:
        """Open the port; 0 takes a free one. Its address.

        Raises:
            PortInUse: it is taken, or may not be listened on.
        """
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise PortInUse(
                f"metrics port {host}:{port} cannot be opened: {error}; give --metrics-port another one"
            ) from error
        return f"http://{host}:{self._server.server_port}/metrics"

    def show(self, report: "IngestReport") -> None:
        """Take the newest report over."""
        if self._report is None or report.found != self._report.found:
            self._moved_at = time.time()
        self._report = report

    def close(self) -> None:
        """Close the port. May be called twice."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            with suppress(OSError):
                server.server_close()
            self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks for, at each scrape."""
        report = self._report
        if report is None:
            return
        images: dict[tuple[str, str], float] = {("written", ""): report.written}
        images |= {("skipped", reason): count for reason, count in report.skipped.items()}
        values: dict[str, Any] = {
            "ingest_images_total": images,
            "ingest_bytes_total": report.bytes,
            "ingest_shards_total": report.shards,
            "ingest_waiting": int(report.status not in {"running", "finished", "stopped"}),
            "ingest_last_image_timestamp_seconds": self._moved_at,
        }
        for row in INGEST:
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            one = family(PREFIX + row.name, row.help, labels=row.labels)
            found = values[row.name]
            for labels, value in found.items() if isinstance(found, dict) else [((), found)]:
                one.add_metric(labels, value)
            yield one
