"""`swavstream ingest`: images become records of a stream."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ingest.config import IngestConfig
    from ingest.topic_destination import TopicDestination
    from ingest.worker import IngestReport
    from ops.ingest_metrics import IngestMetrics

NOTE = b"\nstopping: what is open is being committed (Ctrl-C once more ends at once)\n"


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("dest", metavar="DEST")
@click.option("--open", "open_stream", is_flag=True, help="Leave the stream open for more, unsealed.")
@click.option("--reference", is_flag=True, help="Index plain tars where they are; copy no image of theirs.")
@click.option(
    "--label-from", type=click.Choice(["parent"]), help="Take the folder of an image as its label_name."
)
@click.option(
    "--no-digests", is_flag=True, help="With --reference: do not read the images for their digests."
)
@click.option("--keep-duplicates", is_flag=True, help="Also write content that the stream has already.")
@click.option("--keep-hours", type=float, help="Prune shards that are older than so many hours.")
@click.option("--keep-bytes", type=int, help="Prune the oldest shards until the stream has no more bytes.")
@click.option(
    "--max-ahead", type=int, metavar="RECORDS",
    help="Wait while the slowest registered run has more records unread.",
)  # fmt: skip
@click.option("--create-topic", is_flag=True, help="Make the Kafka topic when it is not there.")
@click.option("--partitions", type=click.IntRange(min=1), help="Partitions of a topic that is made.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65_535), metavar="PORT",
    help="Serve metrics for Prometheus on 127.0.0.1 while it runs; 0 takes a free port and prints it.",
)  # fmt: skip
@click.option("--name", default="", help="Identity of the source; by default made of its absolute path.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="A=V",
    help="Change a setting (short_side, quality, reencode, min_side, workers, ...); may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the accounts as one JSON object.")
def command(
    sources: tuple[str, ...],
    dest: str,
    open_stream: bool,
    reference: bool,
    label_from: str | None,
    no_digests: bool,
    keep_duplicates: bool,
    keep_hours: float | None,
    keep_bytes: int | None,
    max_ahead: int | None,
    create_topic: bool,
    partitions: int | None,
    metrics_port: int | None,
    name: str,
    assignments: tuple[str, ...],
    as_json: bool,
) -> int:
    """Bring images from SOURCE... into the stream DEST, shards or a Kafka topic.

    SOURCE is a folder (images in it and below, and tars), a tar, a gzipped tar, or a quoted glob. DEST is a
    folder or any fsspec URL, made when it is not there, and sealed at the end, unless --open; or it is
    kafka://HOST:PORT/TOPIC, which is made with --create-topic --partitions N and stays open.

    Killed or stopped, the same command goes on where it was; finished, it does nothing. A second ingest of
    the same source is refused while the first is at work. What cannot be used is skipped and counted by its
    reason: found = written + skipped. Images above 384 pixels on the shorter side are made smaller; sound
    small JPEGs stay as they are, byte for byte. Labels for evaluation come from .cls or .json beside the
    image, or with --label-from parent from its folder. Each image of a sample in a tar (7.left.jpg,
    7.right.jpg) is a record of its own.

    With --reference plain tars stay where they are. Each is read once for digests of its images, so that
    `stream verify --deep` sees what changed and no image is taken twice; --no-digests leaves that out.

    An endless stream is kept small by --keep-hours or --keep-bytes: old shards leave, but never one that a
    registered run still needs. With --max-ahead the ingest waits for the slowest of these runs.

    \b
    Examples:
        swavstream ingest PICTURES/ STREAM/
        swavstream ingest 'CRAWL/*.tar' STREAM/ --reference --open
        swavstream ingest MORE/ EVEN-MORE.tar.gz STREAM/ --set short_side=256 --set quality=85
        swavstream ingest CRAWL/ STREAM/ --open --keep-hours 72 --max-ahead 1000000
        swavstream seal STREAM/
        swavstream ingest PICTURES/ kafka://HOST:9092/images --create-topic --partitions 8

    --json prints found, written, skipped {reason: n}, bytes, shards, seconds, status (finished or stopped),
    sealed, labels_lost {reason: n} and warnings; counts and seconds are over all starts.
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from ops.signals import StopRequest
    from stream.topic_address import is_topic

    if create_topic != (partitions is not None):
        raise click.UsageError(
            "--create-topic and --partitions go together: a partition is a lane of a learner"
        )
    if is_topic(dest) and reference:
        raise click.UsageError(
            "--reference leaves images in their tars, and a topic holds the images: leave it out"
        )
    if partitions is not None and not is_topic(dest):
        raise click.UsageError(f"--create-topic is for kafka://HOST:PORT/TOPIC, and DEST is {dest}")
    with StopRequest(NOTE) as asked:
        from ingest.forking import begin_imports

        limits = {"keep_hours": keep_hours, "keep_bytes": keep_bytes, "max_ahead": max_ahead}
        config = _config(
            assignments, label_from, limits, keep_duplicates=keep_duplicates, digests=not no_digests
        )
        if config.workers:
            begin_imports()  # while this process has imports of its own: the first image comes sooner

        from ingest.sources import open_source
        from ingest.worker import STOPPED, run_ingest

        source = open_source(sources, name=name, label_from=config.label_from, max_bytes=config.max_bytes)
        destination = _topic(dest, source.source_id, config, partitions)
        show = _Shown()
        show.serve(metrics_port)
        try:
            report = run_ingest(
                source,
                dest,
                config,
                open_stream=open_stream,
                reference=reference,
                progress=show,
                stop=asked.asked,
                destination=destination,
            )
        finally:
            show.end()
    for warning in report.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(json.dumps(asdict(report)) if as_json else _told(report, dest))
    return asked.exit_code if report.status == STOPPED else 0


def _topic(
    dest: str, source_id: str, config: "IngestConfig", partitions: int | None
) -> "TopicDestination | None":
    """The topic that an address names, made when that is asked for; None when it names shards."""
    from stream.topic_address import is_topic

    if not is_topic(dest):
        return None
    from ingest.topic_destination import TopicDestination

    return TopicDestination(dest, source_id, config, create_partitions=partitions or 0)


class _Shown:
    """The progress line, on a terminal; elsewhere only that and why the ingest waits."""

    def __init__(self) -> None:
        from ops.progress import ProgressLine

        self._line = ProgressLine(sys.stderr, total=None)
        self._all = sys.stderr.isatty()
        self._metrics: IngestMetrics | None = None

    def serve(self, port: int | None) -> None:
        """Also show the accounts to Prometheus, where that is wanted."""
        if port is None:
            return
        from ops.ingest_metrics import IngestMetrics

        self._metrics = IngestMetrics()
        self._line.note(f"metrics {self._metrics.serve(port)}")

    def __call__(self, report: "IngestReport") -> None:
        if self._metrics is not None:
            self._metrics.show(report)
        running = report.status == "running"
        if (self._all or not running) and self._line.due(report.found):
            self._line.say(
                f"{report.found:,} found  {self._line.rate(report.found):,.0f}/s  "
                f"{report.written:,} written  {report.found - report.written:,} skipped  "
                f"{report.shards:,} shards  {report.bytes / 1e6:,.1f} MB"
                + ("" if running else f"  {report.status}")
            )

    def end(self) -> None:
        self._line.end()
        if self._metrics is not None:
            self._metrics.close()


def _config(
    assignments: tuple[str, ...],
    label_from: str | None,
    limits: dict[str, float | None],
    *,
    keep_duplicates: bool,
    digests: bool,
) -> "IngestConfig":
    from ingest.config import IngestConfig
    from ops import settings

    values: dict[str, object] = {}
    for assignment in assignments:
        settings.assign(values, assignment)
    if label_from is not None:
        values["label_from"] = label_from
    if keep_duplicates:
        values["keep_duplicates"] = True
    if not digests:
        values["digests"] = False
    for name, limit in limits.items():
        if limit is not None:
            settings.assign(values, f"retention.{name}={limit}")
    return settings.read(IngestConfig, values)


def _told(report: "IngestReport", dest: str) -> str:
    from stream.topic_address import is_topic

    skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
    lost = ", ".join(f"{count:,} {reason}" for reason, count in report.labels_lost.items())
    total = report.found - report.written
    lines = [
        f"{report.status}: {report.found:,} found = {report.written:,} written + {total:,} skipped"
        + (f" ({skipped})" if skipped else ""),
        f"  {'' if is_topic(dest) else f'{report.shards:,} shards, '}{report.bytes / 1e6:,.1f} MB of images, "
        f"{report.seconds:,.1f} s",
        f"  {dest} is {'sealed' if report.sealed else 'open'}",
    ]
    if lost:
        lines.insert(1, f"  labels lost: {lost}")
    if report.status == "stopped":
        lines.append("  the same command goes on from here")
    return "\n".join(lines)
