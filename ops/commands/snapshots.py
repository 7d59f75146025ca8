"""`swavstream snapshots`: what a run has published."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.commands import snapshot_compare, snapshot_names
from ops.commands.snapshot_options import JSON, REDIS, RUN, ask

if TYPE_CHECKING:
    from ops.snapshot_info import SnapshotInfo


@click.group()
def command() -> None:
    """Look at the published snapshots of a run, compare, fetch, name and prune them.

    VERSION is a number, `head` (the newest), `stable` (the newest that passed the health gate, or what an
    operator chose), or `pin:NAME`.

    \b
    Examples:
        swavstream snapshots list RUN/
        swavstream snapshots show RUN/ stable
        swavstream snapshots diff RUN/ stable head
        swavstream snapshots fetch RUN/ stable MODEL/
        swavstream snapshots pin RUN/ paper 12
        swavstream snapshots rollback RUN/
    """  # noqa: D301


for other in (snapshot_compare.diff, snapshot_compare.fetch):
    command.add_command(other)
for other in (
    snapshot_names.promote, snapshot_names.rollback, snapshot_names.pin, snapshot_names.unpin,
    snapshot_names.prune,
):  # fmt: skip
    command.add_command(other)


@command.command("list")
@RUN
@REDIS
@JSON
def list_snapshots(run_dir: Path, url: str, as_json: bool) -> None:
    """List the snapshots of the run in RUN, newest first.

    \b
    Examples:
        swavstream snapshots list RUN/
        swavstream snapshots list RUN/ --json
        swavstream snapshots list RUN/ --redis redis://host:6379/0
    """  # noqa: D301
    found = ask(run_dir, url, lambda store: store.versions())
    if as_json:
        click.echo(json.dumps([info.to_json() for info in found]))
        return
    if not found:
        click.echo("No snapshot was published yet.")
        return
    click.echo(
        f"{'version':>7}  {'samples':>12}  {'K x D':>11}  {'health':<10} {'created':<16}  digest        names"
    )
    for info in found:
        click.echo(_row(info))


@command.command()
@RUN
@click.argument("which", metavar="[VERSION]", default="head")
@REDIS
@JSON
def show(run_dir: Path, which: str, url: str, as_json: bool) -> None:
    """Show one snapshot of the run in RUN: a VERSION, `head` (the newest; default), `stable` or `pin:NAME`.

    \b
    Examples:
        swavstream snapshots show RUN/
        swavstream snapshots show RUN/ 12 --json
    """  # noqa: D301
    info = ask(run_dir, url, lambda store: store.show(which))
    if as_json:
        click.echo(json.dumps(info.to_json()))
        return
    for name, value in _told(info):
        click.echo(f"{name:<12} {value}")


def _row(info: "SnapshotInfo") -> str:
    names = [*info.aliases, *(["abandoned"] if info.abandoned else [])]
    return (
        f"{info.version:>7}  {info.samples:>12,}  {f'{info.prototypes} x {info.dim}':>11}  "
        f"{_verdict(info):<10} {_when(info):<16}  {info.digest[:12]}  {', '.join(names)}"
    ).rstrip()


def _told(info: "SnapshotInfo") -> list[tuple[str, str]]:
    from ops.snapshot_info import health_in_words

    return [
        ("version", _with_names(info)),
        ("digest", info.digest),
        ("samples", f"{info.samples:,} in {info.updates:,} updates"),
        ("prototypes", f"{info.prototypes} of dimension {info.dim}"),
        ("health", health_in_words(info.health)),
        ("created", f"{_when(info)} UTC by {info.publisher}"),
        ("parent", "none" if info.parent is None else str(info.parent)),
        ("encoder", f"{info.encoder} (in {info.run_dir})"),
        ("blob", f"{info.blob_sha256}, {info.blob_bytes:,} bytes"),
        ("settings", info.config_hash),
        ("abandoned", "yes: the run went on from before it" if info.abandoned else "no"),
    ]


def _with_names(info: "SnapshotInfo") -> str:
    return f"{info.version} ({', '.join(info.aliases)})" if info.aliases else str(info.version)


def _verdict(info: "SnapshotInfo") -> str:
    return str(info.health.get("verdict", "unknown"))


def _when(info: "SnapshotInfo") -> str:
    return f"{datetime.fromtimestamp(info.created, UTC):%Y-%m-%d %H:%M}"
