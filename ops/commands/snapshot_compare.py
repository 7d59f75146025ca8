"""`swavstream snapshots diff | fetch`: two snapshots compared, one taken along."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.commands.snapshot_options import JSON, REDIS, RUN, ask

if TYPE_CHECKING:
    from ops.snapshot_diff import Difference


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

    Says how far prototypes moved (cosine, index by index), which began anew (another generation), how usage
    shifted, and the churn: the share of the run's probe set that has another prototype in B than in A. That
    number decides whether what was computed with A must be computed again. The probe set are the first 2,048
    samples of the run, kept as thumbnails.

    \b
    Examples:
        swavstream snapshots diff RUN/ stable head
        swavstream snapshots diff RUN/ 3 12 --json
        swavstream snapshots diff RUN/ 3 12 --images 0
    """  # noqa: D301
    from ops import probe, snapshot_diff
    from ops.encoders import EncoderFiles
    from ops.errors import SnapshotError
    from ops.snapshot_reader import load_snapshot

    encoders = EncoderFiles(run_dir)
    one, two = ask(
        run_dir, url, lambda store: (load_snapshot(store, encoders, a), load_snapshot(store, encoders, b))
    )
    churn, note = None, "not asked for"
    if images:
        try:
            kept = probe.read(run_dir)
            if len(kept.samples) > images:
                kept = probe.Probe(
                    thumbs=kept.thumbs[:images], samples=kept.samples[:images], keys=kept.keys[:images]
                )
            churn, note = snapshot_diff.churn_of(run_dir, one, two, kept), ""
        except SnapshotError as error:
            note = str(error)
    found = snapshot_diff.compare(one, two, churn=churn, note=note)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    for name, value in _told(found):
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
    from ops.encoders import EncoderFiles
    from ops.snapshot_fetch import fetch as fetched

    info, there = ask(run_dir, url, lambda store: fetched(store, EncoderFiles(run_dir), which, dest))
    if as_json:
        click.echo(json.dumps({"version": info.version, "digest": info.digest, "dest": str(dest)}))
        return
    click.echo(f"snapshot {info.version} {'is already' if there else 'is now'} in {dest}")


def _told(found: "Difference") -> list[tuple[str, str]]:
    moved, usage, probe = found.prototypes, found.usage, found.probe
    same = "the same weights to the bit" if found.equal else f"{found.samples:+,} samples"
    rows = [("versions", f"{found.version_a} -> {found.version_b}: {same}")]
    if found.settings_changed:
        rows.append(("settings", "changed in between: see changes.jsonl of the run"))
    if moved.cosine_p50 is None:
        rows.append(("prototypes", f"all {moved.prototypes} began anew"))
    else:
        rows.append((
            "prototypes",
            f"cosine {moved.cosine_p50:.3f} median, {moved.cosine_p1:.3f} lowest percent, "
            f"{moved.cosine_min:.3f} least; {moved.moved} of {moved.prototypes} moved (below 0.9), "
            f"{moved.nearest_elsewhere} nearest to another index",
        ))  # fmt: skip
    some = ", ".join(map(str, moved.reseeded[:12])) + (", ..." if len(moved.reseeded) > 12 else "")
    rows.append(("anew", f"{len(moved.reseeded)} prototypes{': ' + some if some else ''}"))
    rows.append((
        "usage",
        f"{usage.total_variation:.1%} shifted; {usage.perplexity_a:.1f} -> {usage.perplexity_b:.1f} in use",
    ))  # fmt: skip
    for name, changes in (("gained", usage.gained), ("lost", usage.lost)):
        shown = ", ".join(f"{k} ({before:.2%} -> {after:.2%})" for k, before, after in changes)
        rows.append((name, shown or "none"))
    if probe is None:
        return [*rows, ("churn", f"not known: {found.probe_note}")]
    return [
        *rows,
        (
            "churn",
            f"{probe.churn:.1%} have another prototype; {probe.churn_best_match:.1%} after renaming",
        ),
        (
            "probe",
            f"{probe.images:,} images of the run's first {probe.last_samples:,} samples, "
            f"kept at {probe.thumbnail_px} px, looked at with {probe.view_px} px",
        ),
    ]
