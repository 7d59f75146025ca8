"""`swavstream stream`: look at a stream, let its old shards go, see whether it is whole."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ops.durations import duration
from ops.errors import EXIT_AGAIN

if TYPE_CHECKING:
    from stream.shards.manifest import Manifest
    from stream.shards.readers import ReaderRecord

# A run that was seen so lately is taken for a live one: entries are renewed every ten seconds at least.
LIVE_S = 60.0


@click.group()
def command() -> None:
    """Look at a stream, let its old shards go, see whether it is whole.

    \b
    Examples:
        swavstream stream show STREAM/
        swavstream stream prune STREAM/ --keep-hours 72
        swavstream stream verify STREAM/ --deep
    """  # noqa: D301


@command.command()
@click.argument("stream")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(stream: str, as_json: bool) -> None:
    """Say what STREAM, a directory or URL, holds, and which runs read it.

    \b
    Examples:
        swavstream stream show STREAM/
        swavstream stream show STREAM/ --json
    """  # noqa: D301
    from ingest.rejects import FOLDER, lists_of
    from stream.shards.commits import Accounts
    from stream.shards.readers import read_readers

    manifest = _shards(stream)
    first, size = manifest.floor.first, len(manifest)
    shards = int((manifest.counts()[first:] > 0).sum())
    stored = manifest.stored()
    oldest, newest = [manifest.entry(at).created if first < size else None for at in (first, size - 1)]
    accounts = sum((one.accounts for one in manifest.sources().values()), Accounts())
    listed = sum(listed.lines for _, listed in lists_of(manifest))
    readers = [_reader(manifest, reader) for reader in read_readers(manifest.store)]
    body: dict[str, Any] = {
        "stream": stream,
        "uuid": manifest.uuid,
        "records": manifest.records,
        "pruned_records": manifest.floor.records,
        "shards": shards,
        "commits": len(manifest),
        "first_commit": manifest.floor.first,
        "bytes": stored,
        "sealed": manifest.sealed,
        "oldest_commit": oldest,
        "newest_commit": newest,
        "readers": readers,
        "found": accounts.found,
        "skipped": dict(sorted(accounts.skipped.items())),
        "rejects_listed": listed,
    }
    if as_json:
        click.echo(json.dumps(body))
        return
    click.echo(f"{stream}: {'sealed' if manifest.sealed else 'open'}, uuid {manifest.uuid}")
    pruned = f", the first {manifest.floor.records:,} of them pruned" if manifest.floor.records else ""
    click.echo(f"  records {manifest.records:,}{pruned}")
    click.echo(f"  shards  {shards:,} ({stored:,} bytes)")
    click.echo(f"  commits {len(manifest):,}")
    if accounts.skipped:
        ordered = sorted(accounts.skipped.items(), key=lambda item: (-item[1], item[0]))
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in ordered)
        where = f"; {listed:,} listed in {manifest.url}/{FOLDER}" if listed else ""
        click.echo(
            f"  skipped {accounts.found - accounts.written:,} of {accounts.found:,} found ({skipped}){where}"
        )
    for reader in readers:
        click.echo(
            f"  run     {reader['run']}: {reader['unread']:,} records unread, needs commits from "
            f"{reader['first']} on, seen {duration(reader['seen_seconds_ago'])} ago ({reader['where']})"
        )


@command.command()
@click.argument("stream")
@click.option("--keep-hours", type=float, default=0.0, help="Shards committed longer ago than this leave.")
@click.option(
    "--keep-bytes", type=int, default=0, help="The oldest shards leave until the rest is no larger, bytes."
)
@click.option("--forget", metavar="RUN", default="", help="Take a run out of the register first.")
@click.option("--force", is_flag=True, help="Also forget a run that was seen a moment ago.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(
    stream: str,
    keep_hours: float,
    keep_bytes: int,
    forget: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let the oldest shards of STREAM go: those beyond the limits that no registered run needs.

    A run is registered while it learns and after, until it is finished: what the oldest of its
    kept checkpoints would read is never pruned. A run that will never come back is taken out with --forget
    (its name, or the unique beginning of it, as `stream show` lists it). Tars that were adopted with
    --reference stay where they are. Killed at any moment, the same command goes on.

    \b
    Examples:
        swavstream stream prune STREAM/ --keep-hours 72
        swavstream stream prune STREAM/ --keep-bytes 2000000000000 --dry-run
        swavstream stream prune STREAM/ --forget 3f2a
    """  # noqa: D301
    if not (keep_hours or keep_bytes or forget):
        raise click.UsageError(
            "give --keep-hours, --keep-bytes (above 0: nothing else is a limit) or --forget"
        )
    if forget and dry_run:
        raise click.UsageError(
            "--dry-run shows what would go while every registered run is kept: leave --forget out"
        )
    from stream.config import RetentionConfig
    from stream.shards.retention import forget as forget_run
    from stream.shards.retention import prune as prune_stream

    limits = RetentionConfig(keep_hours=keep_hours, keep_bytes=keep_bytes)
    manifest = _shards(stream)
    forgotten = forget_run(manifest, forget, live_s=0.0 if force else LIVE_S) if forget else ""
    done = prune_stream(manifest, limits, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({**asdict(done), "forgotten": forgotten, "dry_run": dry_run}))
        return
    if forgotten:
        click.echo(f"run {forgotten} is forgotten")
    click.echo(
        f"{'would prune' if dry_run else 'pruned'} {done.records:,} records in {done.commits:,} commits; "
        f"{done.shards:,} shards, {done.bytes:,} bytes; kept from commit {done.first} on"
    )
    if done.held_by is not None:
        from stream.shards.readers import seen_ago

        click.echo(
            f"  more would go, but run {done.held_by.run} ({done.held_by.where}, seen "
            f"{duration(seen_ago(done.held_by))} ago) needs commits from {done.held_by.first} on"
        )


@command.command()
@click.argument("stream")
@click.option("--deep", is_flag=True, help="Read every byte, compare digests, decode every image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(stream: str, deep: bool, as_json: bool) -> int:
    """See whether STREAM is what was written: manifest, indexes, sizes of shards, with --deep every byte.

    With --deep every image is decoded too, as in learning, which shows damage that was there before an image
    came into the stream or into a tar that was adopted.

    Exit code 78, and a line for each damage, when it is not. Records of tars adopted without digests are read
    with --deep, and counted as not checked.

    \b
    Examples:
        swavstream stream verify STREAM/
        swavstream stream verify STREAM/ --deep --json
    """  # noqa: D301
    from ops.train.progress import ProgressLine
    from stream.errors import StreamDamaged
    from stream.processes import decoders_silenced
    from stream.shards.verify import Damage, Looked
    from stream.shards.verify import verify as look

    unchecked = 0

    def show_progress(looked: Looked) -> None:
        nonlocal unchecked
        unchecked = looked.unchecked
        if line.due(looked.commits):
            line.say(f"{looked.commits:,} of {looked.of:,} commits  {looked.bytes / 1e6:,.0f} MB read")

    damages: list[Damage] = []
    commits = records = 0
    with decoders_silenced():
        line = ProgressLine(sys.stderr, total=None)
        try:
            manifest = _shards(stream)
            commits, records = len(manifest), manifest.records
            damages.extend(look(manifest, deep=deep, progress=show_progress))
        except StreamDamaged as error:
            damages.append(Damage(name="manifest", what=str(error)))
        line.end()
    if as_json:
        body = {
            "stream": stream,
            "commits": commits,
            "records": records,
            "deep": deep,
            "unchecked": unchecked,
            "damages": [asdict(damage) for damage in damages],
        }
        click.echo(json.dumps(body))
    else:
        for damage in damages:
            click.echo(f"{damage.name}: {damage.what}")
        if unchecked:
            click.echo(
                f"content not checked: {unchecked:,} records of tars that were adopted without digests "
                "(by an earlier version, or with --no-digests)"
            )
        found = "no damage" if not damages else f"{len(damages):,} damage{'s' if len(damages) > 1 else ''}"
        click.echo(f"{stream}: {commits:,} commits, {records:,} records, {found}")
    return EXIT_AGAIN if damages else 0


def _shards(stream: str) -> "Manifest":
    """The manifest of a stream of shards."""
    from stream.kafka_topic.address import is_topic
    from stream.secrets import safe_url
    from stream.shards.manifest import Manifest

    if is_topic(stream):
        raise click.UsageError(
            f"{safe_url(stream)} is a Kafka topic, and this command is for streams of shards: look at a "
            "topic with Kafka's own tools, and at a run over it with `swavstream status RUN`"
        )
    return Manifest.open(stream)


def _reader(manifest: "Manifest", reader: "ReaderRecord") -> dict[str, Any]:
    from stream.shards.readers import seen_ago
    from stream.shards.retention import unread_by

    return {
        **asdict(reader),
        "unread": unread_by(manifest, reader),
        "seen_seconds_ago": round(seen_ago(reader), 1),
    }
