"""`swavstream evaluate`: how good the features of a run are."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ops.evaluate.protocol import KnnReport


@click.group()
def command() -> None:
    """Measure the features of a run on labelled streams.

    \b
    Example:
        swavstream evaluate knn RUN/ --train TRAIN/ --test TEST/
    """  # noqa: D301  click reads the escape as "do not rewrap"


@command.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--train", required=True, metavar="STREAM", help="Labelled stream whose images vote.")
@click.option("--test", required=True, metavar="STREAM", help="Labelled stream whose images are asked.")
@click.option(
    "--max-bank",
    default=50_000,
    show_default=True,
    metavar="N",
    help="Vote with at most N images of --train.",
)
@click.option(
    "--baselines",
    default="all",
    show_default=True,
    metavar="NAMES",
    help="Rows beside the trained network: `all`, `none`, or some of untrained, raw_pixels, kmeans_400 and "
    "kmeans_1600, with commas.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def knn(run_dir: Path, train: str, test: str, max_bank: int, baselines: str, as_json: bool) -> None:
    """Weighted nearest neighbours, beside baselines that learn nothing or little.

    Features are those of the backbone, before the projection head, and of the patch branch if there is one.
    k is 20 and 200. Each row is given as it is and after PCA whitening to 128 numbers, estimated without
    labels on the first 10,000 images of --train, with the processor seconds that it took. An image of
    --test that is in --train too has no vote on itself; how many there are is said.

    \b
    untrained    the run's network before its first step, batch-norm statistics estimated on the bank
    raw_pixels   pixels of the view at 32 x 32 at most, standardised a channel
    kmeans_400   online k-means of patches of 6 pixels of that view (Coates, Lee and Ng 2011), 400 centres
    kmeans_1600  the same with 1,600 centres; the dearest row

    Scores of baselines are kept in $XDG_CACHE_HOME/swavstream (~/.cache/swavstream) by the digest of the data
    that they depend on: the same images again cost nothing.

    \b
    Example:
        swavstream evaluate knn RUN/ --train TRAIN/ --test HELD_OUT/ --json
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from ops.evaluate import protocol
    from ops.evaluate.baselines import BASELINES

    named = tuple(name.strip() for name in baselines.split(","))
    chosen = {"all": tuple(BASELINES), "none": ()}.get(baselines, named)
    report = protocol.evaluate_knn(
        run_dir,
        train_url=train,
        test_url=test,
        max_bank=max_bank,
        baselines=chosen,
        progress=_progress(),
    )
    click.echo(json.dumps(report.to_json()) if as_json else _table(report))


def _progress() -> Callable[[str, int, int], None]:
    """A line on stderr that says what is being done; on a terminal it is written over, else once a pass."""
    last, shown_at = "", 0.0
    on_terminal = sys.stderr.isatty()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last, shown_at
        now = time.monotonic()
        if what == last and (not on_terminal or (now - shown_at < 0.2 and done < total)):
            return
        last, shown_at = what, now
        if on_terminal:
            click.echo(f"\r\x1b[K{what}: {done:,} of {total:,} images", nl=done >= total, err=True)
        else:
            click.echo(f"{what}: {total:,} images", err=True)

    return show


def _in_bank(report: "KnnReport") -> list[str]:
    """That queries were met in the bank; nothing when none was."""
    if not report.queries_in_bank:
        return []
    return [
        f"{report.queries_in_bank:,} of the queries are in the bank too: each was left out of its own vote"
    ]


def _not_better(report: "KnnReport") -> list[str]:
    """A line for each baseline that the trained network does not beat everywhere."""
    return [
        f"the trained network is not better than {_SHOWN[name]} at {', '.join(map(_score_shown, scores))}"
        for name, scores in report.not_better_than.items()
    ]


def _score_shown(score: str) -> str:
    whitened, k = score.startswith("whitened."), score.removeprefix("whitened.").removeprefix("k")
    return f"k = {k} {'whitened' if whitened else 'plain'}"


_SHOWN = {
    "trained": "trained",
    "untrained": "untrained",
    "raw_pixels": "raw pixels",
    "kmeans_400": "k-means, 400",
    "kmeans_1600": "k-means, 1600",
}


def _table(report: "KnnReport") -> str:
    ks = tuple(report.trained.plain)
    lines = [
        "  ".join([f"{'':<13}", *(f"{f'k = {k}':>9}" for k in ks), *(f"{f'k = {k}':>9}" for k in ks)]),
        "  ".join(
            [f"{'':<13}", *(f"{'plain':>9}" for _ in ks), *(f"{'whitened':>9}" for _ in ks), f"{'CPU s':>9}"]
        ),
    ]
    for name, row in ({"trained": report.trained} | report.baselines).items():
        scores = [f"{value:>7.2f} %" for value in (*row.plain.values(), *row.whitened.values())]
        kept = "  cached" if name in report.cached else ""
        lines.append("  ".join([f"{_SHOWN[name]:<13}", *scores, f"{row.cpu_seconds:>9.1f}"]) + kept)
    skipped = ", ".join(f"{number:,} {reason}" for reason, number in report.skipped.items()) or "none"
    lines += [
        f"chance        {100 / report.classes:.2f} % for {report.classes} classes; always the commonest "
        f"class: {report.commonest:.2f} %",
        f"bank {report.bank:,}, queries {report.queries:,}, left out: {skipped}",
        *_in_bank(report),
        *_not_better(report),
        f"weights of {report.samples:,} samples: {report.weights}",
    ]
    return "\n".join(lines)
