"""`swavstream snapshots`: list, show, compare, fetch, promote, pin and prune what a run has published."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from ops.snapshots.store import SnapshotStore
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ops.evaluate.snapshot_diff import Difference
from datetime import UTC, datetime

if TYPE_CHECKING:
    from ops.snapshots.types import SnapshotInfo


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

    from ops.errors import RedisUnavailable
    from ops.rundir.files import read_run
    from ops.snapshots.embedded_redis import open_redis
    from ops.snapshots.redis_client import error_text, redis_url
    from ops.snapshots.store import SnapshotStore
    from stream.secrets import safe_url

    record = read_run(run_dir)
    place = redis_url(url or record.config.get("snapshot", {}).get("url", ""))
    try:
        with open_redis(run_dir, place, changes=changes) as client:
            return question(SnapshotStore(client, record.uuid))
    except redis.RedisError as error:
        told = safe_url(place) if place else f"the server of {run_dir}"
        raise RedisUnavailable(
            f"no answer from {told}: {error_text(error)}; is it up, and is the URL right?"
        ) from error


def operator() -> str:
    """Who gives a command, for the event that it leaves."""
    return f"{socket.gethostname()}:{os.getpid()}"


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
    from ops.snapshots.aliases import SnapshotNames
    from ops.snapshots.encoder_files import EncoderFiles
    from ops.snapshots.reader import load_snapshot
    from ops.snapshots.store import SnapshotStore

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
    from ops.errors import SnapshotDamaged, SnapshotError, SnapshotNotFound
    from ops.snapshots.aliases import SnapshotNames
    from ops.snapshots.encoder_files import EncoderFiles
    from ops.snapshots.reader import load_snapshot
    from ops.snapshots.store import SnapshotStore

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
    from ops.snapshots.aliases import SnapshotNames
    from ops.snapshots.store import SnapshotStore

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
    from ops.snapshots.aliases import SnapshotNames

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
    from ops.config.schema import RunConfig
    from ops.rundir.files import read_run
    from ops.snapshots.encoder_files import EncoderFiles
    from ops.snapshots.store import SnapshotStore
    from ops.snapshots.writer import SnapshotWriter

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


@click.command()
@RUN
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--images",
    type=click.IntRange(min=0),
    default=2048,
    show_default=True,
    metavar="N",
    help="Images of the probe set to look at; 0 = none: large networks take minutes on a CPU.",
)
@REDIS
@JSON
def diff(run_dir: Path, a: str, b: str, images: int, url: str, as_json: bool) -> None:
    """Compare snapshots A and B of the run in RUN: each a version, `head`, `stable` or `pin:NAME`.

    Says how far prototypes moved (cosine, index by index), which were re-seeded (another generation), how
    usage shifted, and the churn: the share of the run's probe set that has another prototype in B than in A.
    That number decides whether what was computed with A must be computed again. The probe set are the first
    2,048 samples of the run, kept as thumbnails.

    \b
    Examples:
        swavstream snapshots diff RUN/ stable head
        swavstream snapshots diff RUN/ 3 12 --json
        swavstream snapshots diff RUN/ 3 12 --images 0
    """  # noqa: D301
    from ops.errors import SnapshotError
    from ops.evaluate import snapshot_diff
    from ops.snapshots import probe_images
    from ops.snapshots.encoder_files import EncoderFiles
    from ops.snapshots.reader import load_snapshot

    encoders = EncoderFiles(run_dir)
    one, two = ask(
        run_dir, url, lambda store: (load_snapshot(store, encoders, a), load_snapshot(store, encoders, b))
    )
    churn, note = None, "not asked for"
    if images:
        try:
            kept = probe_images.read(run_dir)
            if len(kept.samples) > images:
                kept = probe_images.Probe(
                    thumbs=kept.thumbs[:images], samples=kept.samples[:images], keys=kept.keys[:images]
                )
            churn, note = snapshot_diff.churn_of(run_dir, one, two, kept), ""
        except SnapshotError as error:
            note = str(error)
    found = snapshot_diff.compare(one, two, churn=churn, note=note)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    for name, value in _difference_rows(found):
        click.echo(f"{name:<12} {value}")


@click.command()
@RUN
@click.argument("which", metavar="VERSION")
@click.argument("dest", type=click.Path(path_type=Path))
@REDIS
@JSON
def fetch(run_dir: Path, which: str, dest: Path, url: str, as_json: bool) -> None:
    """Write one snapshot of the run in RUN to a new directory DEST, as files that need neither Redis nor RUN.

    VERSION is a number, `head`, `stable` or `pin:NAME`. Every digest is checked first. DEST then holds
    snapshot.json, prototypes.safetensors and encoder.safetensors.

    \b
    Examples:
        swavstream snapshots fetch RUN/ stable MODEL/
        swavstream snapshots fetch RUN/ 12 MODEL-12/ --json
    """  # noqa: D301
    from ops.snapshots.encoder_files import EncoderFiles
    from ops.snapshots.reader import fetch as fetched

    info, there = ask(run_dir, url, lambda store: fetched(store, EncoderFiles(run_dir), which, dest))
    if as_json:
        click.echo(json.dumps({"version": info.version, "digest": info.digest, "dest": str(dest)}))
        return
    click.echo(f"snapshot {info.version} {'is already' if there else 'is now'} in {dest}")


def _difference_rows(found: "Difference") -> list[tuple[str, str]]:
    moved, usage, probe_images = found.prototypes, found.usage, found.probe
    same = "the same weights to the bit" if found.equal else f"{found.samples:+,} samples"
    rows = [("versions", f"{found.version_a} -> {found.version_b}: {same}")]
    if found.settings_changed:
        rows.append(("settings", "changed in between: see changes.jsonl of the run"))
    if moved.cosine_p50 is None:
        rows.append(("prototypes", f"all {moved.prototypes} were re-seeded"))
    else:
        rows.append((
            "prototypes",
            f"cosine {moved.cosine_p50:.3f} median, {moved.cosine_p1:.3f} lowest percent, "
            f"{moved.cosine_min:.3f} least; {moved.moved} of {moved.prototypes} moved (below 0.9), "
            f"{moved.nearest_elsewhere} nearest to another index",
        ))  # fmt: skip
    some = ", ".join(map(str, moved.reseeded[:12])) + (", ..." if len(moved.reseeded) > 12 else "")
    rows.append(("re-seeded", f"{len(moved.reseeded)} prototypes{': ' + some if some else ''}"))
    rows.append((
        "usage",
        f"{usage.total_variation:.1%} shifted; {usage.perplexity_a:.1f} -> {usage.perplexity_b:.1f} in use",
    ))  # fmt: skip
    for name, changes in (("gained", usage.gained), ("lost", usage.lost)):
        shown = ", ".join(f"{k} ({before:.2%} -> {after:.2%})" for k, before, after in changes)
        rows.append((name, shown or "none"))
    if probe_images is None:
        return [*rows, ("churn", f"not known: {found.probe_note}")]
    return [
        *rows,
        (
            "churn",
            f"{probe_images.churn:.1%} have another prototype; "
            f"{probe_images.churn_best_match:.1%} after renaming",
        ),
        (
            "probe",
            f"{probe_images.images:,} images of the run's first {probe_images.last_samples:,} samples, "
            f"kept at {probe_images.thumbnail_px} px, looked at with {probe_images.view_px} px",
        ),
    ]


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


for other in (diff, fetch):
    command.add_command(other)
for other in (
    promote, rollback, pin, unpin,
    prune,
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
    for name, value in _info_rows(info):
        click.echo(f"{name:<12} {value}")


def _row(info: "SnapshotInfo") -> str:
    names = [*info.aliases, *(["abandoned"] if info.abandoned else [])]
    return (
        f"{info.version:>7}  {info.samples:>12,}  {f'{info.prototypes} x {info.dim}':>11}  "
        f"{_verdict(info):<10} {_when(info):<16}  {info.digest[:12]}  {', '.join(names)}"
    ).rstrip()


def _info_rows(info: "SnapshotInfo") -> list[tuple[str, str]]:
    from ops.snapshots.types import health_in_words

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
