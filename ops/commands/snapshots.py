"""`swavstream snapshots`: what a run has published."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from ops.snapshot_info import SnapshotInfo
    from ops.snapshots import SnapshotStore

Answer = TypeVar("Answer")

RUN = click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
REDIS = click.option(
    "--redis",
    "url",
    default="",
    metavar="URL",
    help="Redis to look in; else the run's setting, SWAVSTREAM_REDIS_URL, or the run's own server.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """List and show the published snapshots of a run.

    \b
    Examples:
        swavstream snapshots list RUN/
        swavstream snapshots show RUN/ stable
    """  # noqa: D301


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
    found = _ask(run_dir, url, lambda store: store.versions())
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
    info = _ask(run_dir, url, lambda store: store.show(which))
    if as_json:
        click.echo(json.dumps(info.to_json()))
        return
    for name, value in _told(info):
        click.echo(f"{name:<12} {value}")


def _ask(run_dir: Path, url: str, question: "Callable[[SnapshotStore], Answer]") -> Answer:
    """Ask the store of a run.

    Raises:
        RunNotFound: there is no run in the directory.
        RedisUnavailable: the server does not answer.
    """
    import redis

    from ops.embedded import open_redis
    from ops.errors import RedisUnavailable
    from ops.redis_client import redis_url, safe_url
    from ops.rundir import read_run
    from ops.snapshots import SnapshotStore

    record = read_run(run_dir)
    place = redis_url(url or record.config.get("snapshot", {}).get("url", ""))
    try:
        with open_redis(run_dir, place) as client:
            return question(SnapshotStore(client, record.uuid))
    except redis.RedisError as error:
        told = safe_url(place) if place else f"the server of {run_dir}"
        raise RedisUnavailable(f"no answer from {told}: {error}; is it up, and is the URL right?") from error


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
