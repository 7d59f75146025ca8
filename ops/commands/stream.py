"""`swavstream stream`: look at a stream."""

import json
from typing import Any

import click


@click.group()
def command() -> None:
    """Look at a stream: records, shards, whether it is sealed.

    \b
    Examples:
        swavstream stream show STREAM/
    """  # noqa: D301


@command.command()
@click.argument("stream")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(stream: str, as_json: bool) -> None:
    """Say what STREAM, a directory or URL, holds.

    \b
    Examples:
        swavstream stream show STREAM/
        swavstream stream show STREAM/ --json
    """  # noqa: D301
    from stream.manifest import Manifest

    manifest = Manifest.open(stream)
    shards = stored = 0
    newest: float | None = None
    for number in range(len(manifest)):
        commit = manifest.entry(number)
        shards += commit.n > 0
        stored += commit.bytes
        newest = commit.created
    body: dict[str, Any] = {
        "stream": stream,
        "uuid": manifest.uuid,
        "records": manifest.records,
        "shards": shards,
        "commits": len(manifest),
        "bytes": stored,
        "sealed": manifest.sealed,
        "newest_commit": newest,
    }
    if as_json:
        click.echo(json.dumps(body))
        return
    click.echo(f"{stream}: {'sealed' if manifest.sealed else 'open'}, uuid {manifest.uuid}")
    click.echo(f"  records {manifest.records:,}")
    click.echo(f"  shards  {shards:,} ({stored:,} bytes)")
    click.echo(f"  commits {len(manifest):,}")
