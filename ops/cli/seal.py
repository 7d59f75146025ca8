"""`swavstream seal`: an open stream gets its end."""

import json

import click


@click.command()
@click.argument("stream")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(stream: str, as_json: bool) -> None:
    """Give the open stream STREAM its end.

    Readers then end when they have read everything, instead of waiting for more; nothing can be added any
    more. For streams that several `ingest --open` have written. Sealing a sealed stream does nothing.

    \b
    Examples:
        swavstream ingest ONE/ STREAM/ --open
        swavstream ingest OTHER/ STREAM/ --open
        swavstream seal STREAM/

    --json prints records, commits and sealed.
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from stream.shards.manifest import Manifest

    manifest = Manifest.open(stream)
    manifest.seal()
    if as_json:
        click.echo(
            json.dumps({"records": manifest.records, "commits": len(manifest), "sealed": manifest.sealed})
        )
    else:
        click.echo(f"sealed: {manifest.records:,} records in {len(manifest):,} commits")
