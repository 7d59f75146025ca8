"""What the commands of `swavstream snapshots` have in common: RUN, options, and the store."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
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


def ask(
    run_dir: Path, url: str, question: "Callable[[SnapshotStore], Answer]", *, changes: bool = False
) -> Answer:
    """Ask the store of a run.

    Args:
        run_dir: the run directory.
        url: Redis to look in, as given; "" = see `REDIS`.
        question: what to do with the store.
        changes: it changes what is there.

    Raises:
        RunNotFound: there is no run in the directory.
        RedisUnavailable: the server does not answer.
    """
    import redis

    from ops.embedded import open_redis
    from ops.errors import RedisUnavailable
    from ops.redis_client import redis_url, safe_url, said
    from ops.rundir import read_run
    from ops.snapshots import SnapshotStore

    record = read_run(run_dir)
    place = redis_url(url or record.config.get("snapshot", {}).get("url", ""))
    try:
        with open_redis(run_dir, place, changes=changes) as client:
            return question(SnapshotStore(client, record.uuid))
    except redis.RedisError as error:
        told = safe_url(place) if place else f"the server of {run_dir}"
        raise RedisUnavailable(
            f"no answer from {told}: {said(error)}; is it up, and is the URL right?"
        ) from error


def operator() -> str:
    """Who gives a command, for the event that it leaves."""
    return f"{socket.gethostname()}:{os.getpid()}"
