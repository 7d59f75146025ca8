"""`swavstream ingest`: images become records of a stream."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ops.durations import duration

if TYPE_CHECKING:
    from ingest.config import IngestConfig
    from ingest.kafka_destination import TopicDestination
    from ingest.worker import IngestReport

NOTE = b"\nstopping: what is open is being committed (Ctrl-C once more ends at once)\n"


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("dest", metavar="DEST")
@click.option("--open", "open_stream", is_flag=True, help="Leave the stream open for more, unsealed.")
@click.option("--reference", is_flag=True, help="Index plain tars where they are; copy no image of theirs.")
@click.option(
    "--label-from", type=click.Choice(["parent"]), help="Take the folder of an image as its label_name."
)
@click.option("--shuffle", is_flag=True, help="Take new files in a random order; archives stay whole.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of that random order.")
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
@click.option(
    "--exclude", multiple=True, metavar="PATTERN",
    help="Leave out files and folders with this name (lost+found, '*.tmp') or path below SOURCE; repeatable.",
)  # fmt: skip
@click.option("--create-topic", is_flag=True, help="Make the Kafka topic when it is not there.")
@click.option("--partitions", type=click.IntRange(min=1), help="Partitions of a topic that is made.")
@click.option(
    "--state", metavar="DIR", default="",
    help="Folder for the lists of what was taken and what was rejected, where DEST is a topic; the same one "
    "for every start.",
)  # fmt: skip
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
@click.option(
    "-v", "--verbose", is_flag=True, help="Name each file that is rejected, on stderr, as it comes."
)
@click.option("--json", "as_json", is_flag=True, help="Print the accounts as one JSON object.")
def command(
    sources: tuple[str, ...],
    dest: str,
    open_stream: bool,
    reference: bool,
    label_from: str | None,
    shuffle: bool,
    seed: int,
    no_digests: bool,
    keep_duplicates: bool,
    keep_hours: float | None,
    keep_bytes: int | None,
    max_ahead: int | None,
    exclude: tuple[str, ...],
    create_topic: bool,
    partitions: int | None,
    state: str,
    metrics_port: int | None,
    name: str,
    assignments: tuple[str, ...],
    verbose: bool,
    as_json: bool,
) -> int:
    """Bring images from SOURCE... into the stream DEST, shards or a Kafka topic.

    SOURCE is a folder (images in it and below, and archives), an archive (zip, or tar, also with gzip, bzip2
    or xz), an image, or a quoted glob. Where a name says nothing the first bytes are looked at; what is no
    image or archive is counted as unsupported_name. What cannot be read is counted and passed.

    DEST is a folder or any fsspec URL, made when it is not there, and sealed at the end, unless --open; or it
    is kafka://HOST:PORT/TOPIC, which is made with --create-topic --partitions N and stays open.

    Killed or stopped, the same command goes on where it was; finished, it takes what is new since, whatever
    its name. A file is taken once, by path, size and time, whichever spelling led to it: the list of what was
    taken lies beside the shards, for a topic in --state DIR. A file that changed is taken again, and what the
    stream has of it by content is skipped as a duplicate. A second ingest of the same source is refused while
    the first is at work.

    What cannot be used is skipped and counted by its reason: found = written + skipped. Each such file is
    listed with its reason in DEST/rejects, a line of JSON for each (for a topic in --state DIR), and -v names
    it as it comes.

    Images above 384 pixels on the shorter side are made smaller; sound small JPEGs stay as they are, byte for
    byte. Labels for evaluation come from .cls or .json beside the image, or with --label-from parent from its
    folder. Each image of a sample in a tar (7.left.jpg, 7.right.jpg) is a record of its own.

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
    sealed, unsupported_names {ending: n}, labels_lost {reason: n} and warnings; counts and seconds are over
    all starts.
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from ops.train.signals import StopRequest

    _check_together(dest, reference=reference, create_topic=create_topic, partitions=partitions, state=state)
    with StopRequest(NOTE, on_warning="end") as stop:
        from ingest.decode_pool import begin_imports

        limits = {"keep_hours": keep_hours, "keep_bytes": keep_bytes, "max_ahead": max_ahead}
        flags = {"keep_duplicates": keep_duplicates, "shuffle": shuffle, "seed": seed}
        config = _config(assignments, label_from, flags, limits, digests=not no_digests)
        if config.workers:
            begin_imports()  # while this process has imports of its own: the first image comes sooner

        from ingest.sources import open_source
        from ingest.worker import STOPPED, run_ingest
        from ops.cli.ingest_progress import IngestProgress

        source = open_source(
            sources, name=name, label_from=config.label_from, max_bytes=config.max_bytes, exclude=exclude
        )
        destination = _topic(dest, source.source_id, config, partitions, state)
        show = IngestProgress(source)
        show.serve(metrics_port)
        try:
            report = run_ingest(
                source,
                dest,
                config,
                open_stream=open_stream,
                reference=reference,
                progress=show,
                stop=stop.requested,
                destination=destination,
                rejected=show.rejected if verbose else None,
            )
        finally:
            show.end()
    for warning in report.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(json.dumps(asdict(report)) if as_json else _summary(report, dest))
    return stop.exit_code if report.status == STOPPED else 0


def _check_together(
    dest: str, *, reference: bool, create_topic: bool, partitions: int | None, state: str
) -> None:
    """Refuse options that DEST, or one another, leave without a meaning."""
    from stream.kafka_topic.address import is_topic
    from stream.secrets import check_no_password

    if not is_topic(dest):  # a topic's address is checked before it is shown
        check_no_password(dest)
    if create_topic != (partitions is not None):
        raise click.UsageError(
            "--create-topic and --partitions go together: a partition is a lane of a learner"
        )
    if is_topic(dest) and reference:
        raise click.UsageError(
            "--reference leaves images in their tars, and a topic holds the images: leave it out"
        )
    if state and not is_topic(dest):
        raise click.UsageError(
            "--state is for kafka://HOST:PORT/TOPIC: what was taken is listed beside a stream of shards, in "
            f"{dest.rstrip('/')}/taken, and what was rejected lies in {dest.rstrip('/')}/rejects"
        )
    if partitions is not None and not is_topic(dest):
        raise click.UsageError(f"--create-topic is for kafka://HOST:PORT/TOPIC, and DEST is {dest}")


def _topic(
    dest: str, source_id: str, config: "IngestConfig", partitions: int | None, state: str
) -> "TopicDestination | None":
    """The topic that an address names, made when that is asked for; None when it names shards."""
    from stream.kafka_topic.address import is_topic

    if not is_topic(dest):
        return None
    from ingest.kafka_destination import TopicDestination

    return TopicDestination(dest, source_id, config, create_partitions=partitions or 0, state=state)


def _config(
    assignments: tuple[str, ...],
    label_from: str | None,
    flags: dict[str, int],
    limits: dict[str, float | None],
    *,
    digests: bool,
) -> "IngestConfig":
    from ingest.config import IngestConfig
    from ops.config import binding

    values: dict[str, object] = {}
    for assignment in assignments:
        binding.assign(values, assignment)
    if label_from is not None:
        values["label_from"] = label_from
    values.update({name: flag for name, flag in flags.items() if flag})
    if not digests:
        values["digests"] = False
    for name, limit in limits.items():
        if limit is not None:
            binding.assign(values, f"retention.{name}={limit}")
    return binding.read(IngestConfig, values)


def _summary(report: "IngestReport", dest: str) -> str:
    from ops.rundir.summary import skipped_text
    from stream.kafka_topic.address import is_topic

    lost = ", ".join(f"{count:,} {reason}" for reason, count in report.labels_lost.items())
    skipped = skipped_text(report.found - report.written, report.skipped)
    lines = [
        f"{report.status}: {report.found:,} found = {report.written:,} written + {skipped}",
        f"  {'' if is_topic(dest) else f'{report.shards:,} shards, '}{report.bytes / 1e6:,.1f} MB of images, "
        f"{duration(report.seconds)}",
        f"  {dest} is {'sealed' if report.sealed else 'open'}",
    ]
    if lost:
        lines.insert(1, f"  labels lost: {lost}")
    if report.status == "stopped":
        lines.append("  the same command goes on from here")
    return "\n".join(lines)
