"""`swavstream snapshots promote | rollback | pin | unpin | prune`: what is called what, and what stays."""

import json
from pathlib import Path
from typing import Any

import click

from ops.commands.snapshot_options import JSON, REDIS, RUN, ask, operator


@click.command()
@RUN
@click.argument("which", metavar="VERSION")
@click.option("--force", is_flag=True, help="Also one that failed the health gate, or was abandoned.")
@REDIS
@JSON
def promote(run_dir: Path, which: str, force: bool, url: str, as_json: bool) -> None:
    """Make VERSION the stable snapshot of the run in RUN; readers of `stable` swap to it.

    It is loaded and verified first, encoder and all. Only `stable` moves; `head` is the learner's. While the
    run goes on, its next healthy snapshot becomes stable again: pin a version to hold it under a name.

    \b
    Examples:
        swavstream snapshots promote RUN/ 12
        swavstream snapshots promote RUN/ head --force
    """  # noqa: D301
    from ops.encoders import EncoderFiles
    from ops.snapshot_names import SnapshotNames
    from ops.snapshot_reader import load_snapshot
    from ops.snapshots import SnapshotStore

    def work(store: SnapshotStore) -> tuple[int, int | None]:
        version = store.show(which).version
        load_snapshot(store, EncoderFiles(run_dir), version)
        return version, SnapshotNames(store, operator()).promote(version, force=force)

    version, before = ask(run_dir, url, work, changes=True)
    text = f"stable is {version}, and was before" if before == version else f"stable is now {version}"
    if before not in {None, version}:
        text += f", was {before}: `snapshots rollback` goes back"
    _say(as_json, text, stable=version, before=before)


@click.command()
@RUN
@REDIS
@JSON
def rollback(run_dir: Path, url: str, as_json: bool) -> None:
    """Move `stable` of the run in RUN back to where it was before it moved last; readers swap to it.

    Versions that are gone or were abandoned are passed over; the one it goes to is loaded and verified first.
    Called again it goes one further back. While the run goes on, its next healthy snapshot becomes stable
    again: stop it, or let readers follow a pin.

    \b
    Examples:
        swavstream snapshots rollback RUN/
        swavstream snapshots rollback RUN/ --json
    """  # noqa: D301
    from ops.encoders import EncoderFiles
    from ops.errors import SnapshotDamaged, SnapshotError, SnapshotNotFound
    from ops.snapshot_names import SnapshotNames
    from ops.snapshot_reader import load_snapshot
    from ops.snapshots import SnapshotStore

    def work(store: SnapshotStore) -> tuple[int, int]:
        def verify(version: int) -> None:
            try:
                load_snapshot(store, EncoderFiles(run_dir), version)
            except (SnapshotDamaged, SnapshotNotFound) as error:
                raise SnapshotError(
                    f"{error}; stable stays: `snapshots promote` moves it to another version by number"
                ) from error

        return SnapshotNames(store, operator()).rollback(verify)

    now, before = ask(run_dir, url, work, changes=True)
    _say(as_json, f"stable is now {now}, was {before}", stable=now, before=before)


@click.command()
@RUN
@click.argument("name")
@click.argument("which", metavar="VERSION")
@REDIS
@JSON
def pin(run_dir: Path, name: str, which: str, url: str, as_json: bool) -> None:
    """Give VERSION of the run in RUN a NAME; it stays for as long as the name does.

    Programs read it as `pin:NAME`. A name that exists is moved.

    \b
    Examples:
        swavstream snapshots pin RUN/ paper 12
        swavstream snapshots pin RUN/ production stable
        swavstream snapshots show RUN/ pin:production
    """  # noqa: D301
    from ops.snapshot_names import SnapshotNames
    from ops.snapshots import SnapshotStore

    def work(store: SnapshotStore) -> tuple[int, int | None]:
        version = store.show(which).version
        return version, SnapshotNames(store, operator()).pin(name, version)

    version, before = ask(run_dir, url, work, changes=True)
    text = f"pin:{name} is {'now ' if before != version else ''}{version}"
    if before not in {None, version}:
        text += f", was {before}"
    _say(as_json, text, pin=name, version=version, before=before)


@click.command()
@RUN
@click.argument("name")
@REDIS
@JSON
def unpin(run_dir: Path, name: str, url: str, as_json: bool) -> None:
    """Take a NAME away from the snapshots of the run in RUN; nothing else goes until the next prune.

    \b
    Examples:
        swavstream snapshots unpin RUN/ paper
    """  # noqa: D301
    from ops.snapshot_names import SnapshotNames

    version = ask(run_dir, url, lambda store: SnapshotNames(store, operator()).unpin(name), changes=True)
    _say(as_json, f"pin:{name} is gone; it was {version}", pin=name, version=None, before=version)


@click.command()
@RUN
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N", help="Newest that stay; else the run's snapshot.keep."
)
@click.option(
    "--ladder",
    type=click.Choice(["0", "1", "2", "4", "8"]),
    help="Older ones that stay for each doubling of age; else the run's snapshot.ladder.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@REDIS
@JSON
def prune(
    run_dir: Path, keep: int | None, ladder: str | None, dry_run: bool, url: str, as_json: bool
) -> None:
    """Forget old snapshots of the run in RUN, and the encoders that no snapshot names.

    These stay: the newest, a ladder of older ones (fewer the older), `head`, `stable`, what `rollback` would
    go to, and every pin. A learner prunes by itself after each snapshot; this is for less, or for a run that
    has ended.

    \b
    Examples:
        swavstream snapshots prune RUN/ --dry-run
        swavstream snapshots prune RUN/ --keep 5 --ladder 0
    """  # noqa: D301
    from ops.config import RunConfig
    from ops.encoders import EncoderFiles
    from ops.rundir import read_run
    from ops.snapshot_writer import SnapshotWriter
    from ops.snapshots import SnapshotStore

    settings = RunConfig.from_dict(read_run(run_dir).config).snapshot

    def work(store: SnapshotStore) -> tuple[list[int], int, int]:
        gone = SnapshotWriter(store).prune(
            keep or settings.keep,
            ladder=settings.ladder if ladder is None else int(ladder),
            dry_run=dry_run,
        )
        left = store.versions()
        files = 0
        if not dry_run:
            files = len(EncoderFiles(run_dir).prune({info.encoder_digest for info in left}))
        return gone, len(left) - len(gone) * dry_run, files

    gone, left, files = ask(run_dir, url, work, changes=True)
    which = f" ({', '.join(map(str, gone))})" if gone else ""
    done = "would go" if dry_run else f"are gone, and {files} encoders"
    _say(
        as_json,
        f"{len(gone)} snapshots{which} {done}; {left} {'would ' * dry_run}stay",
        pruned=gone,
        left=left,
        encoders=files,
        dry_run=dry_run,
    )


def _say(as_json: bool, text: str, **body: Any) -> None:
    click.echo(json.dumps(body) if as_json else text)
