"""What Prometheus sees of a learner and of an ingest: reports in, series out.

The only module that knows the client library of Prometheus. An ingest has a port of its own while it runs.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from learner.health import USAGE_EDGES
from learner.report import HealthReport, StepReport
from ops.errors import PortInUse
from ops.monitoring.catalog import (
    COUNTERS,
    DURATION_BUCKETS_S,
    GAUGE_HISTOGRAMS,
    GAUGES,
    HEALTH,
    HISTOGRAMS,
    INGEST,
    LANES_SHOWN,
    PREFIX,
    STEP,
)
from ops.snapshots.types import RESULTS, PublishResult
from stream.lanes import LaneLag, LaneStats

if TYPE_CHECKING:
    from ingest.worker import IngestReport


class _UsageCollector:
    """The histogram over prototypes, which no instrument of the client library can hold."""

    def __init__(self) -> None:
        self.cells: tuple[int, ...] = ()

    def collect(self) -> Iterable[GaugeHistogramMetricFamily]:
        cells = self.cells
        if not cells:
            return
        metric = GAUGE_HISTOGRAMS[0]
        running, buckets = 0, []
        for edge, count in zip((*USAGE_EDGES, float("inf")), cells, strict=True):
            running += count
            buckets.append(("+Inf" if edge == float("inf") else repr(float(edge)), float(running)))
        # Usage x K has the mean 1, so that its sum is the number of prototypes.
        yield GaugeHistogramMetricFamily(
            PREFIX + metric.name, metric.help, buckets=buckets, gsum_value=float(running)
        )


class Metrics:
    """All metrics of one learner on a registry of its own.

    Every method is quick and never blocks for longer than a scrape takes to copy numbers; any thread may
    call. A gauge appears with its first value, so that nothing is exported that is not known.

    Args:
        version: of the program.
        revision: of its source; "" when not known.
        run: uuid of the run.
        config_hash: of its settings.
        snapshot_every_samples: between two snapshots; 0 = only one at the end.
        start_samples: where the run goes on from.
    """

    def __init__(
        self,
        *,
        version: str,
        revision: str = "",
        run: str = "",
        config_hash: str = "",
        snapshot_every_samples: int = 0,
        start_samples: int = 0,
    ) -> None:
        # Without this the library adds a series with the time of its creation to each counter and histogram.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in the library
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._usage = _UsageCollector()
        self.registry.register(self._usage)
        self._counters = {
            row.name: Counter(PREFIX + row.name, row.help, row.labels, registry=self.registry)
            for row in COUNTERS
        }
        self._gauges = {
            row.name: Gauge(PREFIX + row.name, row.help, row.labels, registry=None) for row in GAUGES
        }
        self._histograms = {
            row.name: Histogram(
                PREFIX + row.name, row.help, row.labels, registry=self.registry, buckets=DURATION_BUCKETS_S
            )
            for row in HISTOGRAMS
        }
        self._shown: set[str] = set()
        self._restarts = 0
        self._letters: dict[str, int] = {}
        self._prototypes = 0
        self._lock = threading.Lock()
        self._set("build_info", 1, version, revision)
        self._set("run_info", 1, run, config_hash)
        self.waiting(False)
        self.ready(False)
        self._set("snapshot_every_samples", snapshot_every_samples)
        self._set("learner_start_timestamp_seconds", time.time())
        self._set("run_start_samples", start_samples)
        self._set("run_ended", 0)
        for kind in ("ok", "error", "damaged"):  # a counter that begins at 0 lets its first rise be seen
            self._counters["checkpoints_total"].labels(kind)
        for kind in RESULTS:
            self._counters["snapshots_published_total"].labels(kind)

    def observe(
        self,
        report: StepReport,
        stats: LaneStats,
        *,
        step_s: float,
        load_s: float = 0.0,
        save_s: float = 0.0,
        replays: int = 0,
    ) -> None:
        """Count one step.

        Args:
            report: of the arriving batch; its seconds are of the whole step.
            stats: of the batch, and of what its replays cost.
            step_s: from the end of the step before to the end of this one, seconds.
            load_s: part of it that was spent waiting for the batch and its replays.
            save_s: part of it for which saving a checkpoint held up the loop.
            replays: further updates of the step, from samples that were seen before.
        """
        self.records(stats)
        self._counters["samples_total"].inc(stats.used)
        self._counters["steps_total"].inc()
        self._counters["updates_total"].labels("fresh").inc()
        self._counters["updates_total"].labels("replay").inc(replays)
        self._counters["prototypes_reseeded_total"].inc(report.reseeded)
        seconds = {**report.seconds, "load": load_s, "checkpoint": save_s}
        seconds["other"] = max(0.0, step_s - sum(seconds.values()))
        for phase, value in seconds.items():
            self._counters["learner_seconds_total"].labels(phase).inc(value)
        self._histograms["step_duration_seconds"].observe(step_s)
        self._set("batch_samples", stats.used)
        self._set("last_step_timestamp_seconds", time.time())
        if report.health is not None:
            self._prototypes = report.health.prototypes
            self._observe_health(report.health)
        for row in STEP:
            if row.per != "k" or row.unit != "ratio":
                self._set(row.name, getattr(report, row.step))
            elif self._prototypes:
                self._set(row.name, getattr(report, row.step) / self._prototypes)

    def replay_memory(self, prototypes: int) -> None:
        """Prototypes that have images in the memory for replay."""
        self._set("replay_prototypes", prototypes)

    def lag(self, records: int) -> None:
        """Records committed but not yet used."""
        self._set("stream_lag_records", records)

    def lanes(self, lags: Sequence[LaneLag]) -> None:
        """How far each lane is behind; of the first lanes only, so that the number of series is bounded."""
        for lag in lags:
            if lag.lane >= LANES_SHOWN:
                continue
            for stage, records, seconds in (
                ("trained", lag.trained_records, lag.trained_s),
                ("fetched", lag.fetched_records, lag.fetched_s),
            ):
                self._set("lane_lag_records", records, stage, str(lag.lane))
                if seconds is not None:
                    self._set("lane_lag_seconds", seconds, stage, str(lag.lane))

    def dead_letters(self, sent: int, dropped: int) -> None:
        """Dead letters since the learner started."""
        for result, total in (("sent", sent), ("dropped", dropped)):
            with self._lock:
                before = self._letters.get(result, 0)
                self._letters[result] = max(total, before)
            self._counters["dead_letters_total"].labels(result).inc(max(0, total - before))

    def waiting(self, yes: bool) -> None:
        """Whether the learner waits for records that have not arrived."""
        self._set("learner_waiting", int(yes))

    def ready(self, yes: bool) -> None:
        """Whether the first step is done and the run is not stopping."""
        self._set("learner_ready", int(yes))

    def ended(self, yes: bool) -> None:
        """Whether the run is over as it should be, so that its metrics are not missed."""
        self._set("run_ended", int(yes))

    def reader_restarts(self, total: int) -> None:
        """Reader processes replaced since the learner started, as the loader counts them."""
        with self._lock:
            more, self._restarts = total - self._restarts, max(total, self._restarts)
        self._counters["reader_restarts_total"].inc(max(0, more))

    def checkpoint(self, result: str, seconds: float = 0.0) -> None:
        """A checkpoint was written (ok), could not be (error), or was found damaged at a resume (damaged).

        Its seconds pass in the background; those of the loop come with `observe`.
        """
        self._counters["checkpoints_total"].labels(result).inc()
        if result == "ok":
            self._histograms["checkpoint_duration_seconds"].observe(seconds)
            self._set("last_checkpoint_timestamp_seconds", time.time())

    def published(self, result: PublishResult) -> None:
        """What became of a snapshot; given to `Publisher` as `on_result`."""
        self._counters["snapshots_published_total"].labels(result.result).inc()
        if not result.version:
            return
        self._histograms["publish_duration_seconds"].observe(result.seconds)
        self._set("snapshot_version", result.version)
        self._set("snapshot_epoch", result.epoch)
        self._set("snapshot_samples", result.samples)
        self._set("snapshot_bytes", result.blob_bytes)
        self._set("last_publish_timestamp_seconds", result.time)
        if result.abandoned:
            self._counters["snapshot_rewinds_total"].inc()
            self._set("snapshot_abandoned", len(result.abandoned))

    def non_finite(self) -> None:
        """A step was refused because loss or gradient was not finite."""
        self._counters["nan_steps_total"].inc()

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """All series for one scrape.

        Args:
            accept: the Accept header of the request; chooses between the text format and OpenMetrics.

        Returns:
            The page and its content type.
        """
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def records(self, stats: LaneStats) -> None:
        """Count records by what became of them, and what reading them cost; `observe` does it for a step."""
        records = self._counters["records_total"]
        records.labels("used", "").inc(stats.used)
        for reason, count in stats.skipped.items():
            records.labels("skipped", reason).inc(count)
        self._counters["reader_bytes_total"].inc(stats.bytes)
        for phase, seconds in (("read", stats.read_s), ("decode", stats.decode_s), ("crop", stats.crop_s)):
            self._counters["reader_seconds_total"].labels(phase).inc(seconds)

    def _observe_health(self, health: HealthReport) -> None:
        for row in HEALTH:
            values: dict[tuple[str, ...], Any] = {(): getattr(health, row.health)} if row.health else {}
            values |= {(stat,): getattr(health, name) for stat, name in row.stats.items()}
            if row.labels and row.health:  # one value for each, by number
                number = "{:02d}" if row.labels == ("group",) else "{}"
                first = 0 if row.labels == ("group",) else 1
                values = {(number.format(n),): one for n, one in enumerate(values[()], start=first)}
            for labels, value in values.items():
                if value is not None or row.name in self._shown:
                    self._set(row.name, float("nan") if value is None else value, *labels)
        self._usage.cells = health.usage_histogram

    def _set(self, name: str, value: float, *labels: str) -> None:
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)
        if name not in self._shown:
            with self._lock:
                if name not in self._shown:
                    self.registry.register(gauge)
                    self._shown.add(name)


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
