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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def knn(run_dir: Path, train: str, test: str, max_bank: int, as_json: bool) -> None:
    """Weighted nearest neighbours, beside raw pixels and the untrained network.

    Features are those of the backbone, before the projection head. The untrained network is the run's own, as
    it was before its first step, with batch-norm statistics estimated on the bank. k is 20 and 200. An image
    of --test that is in --train too has no vote on itself; how many there are is said.

    \b
    Example:
        swavstream evaluate knn RUN/ --train TRAIN/ --test HELD_OUT/ --json
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from ops.evaluate import protocol

    report = protocol.evaluate_knn(
        run_dir, train_url=train, test_url=test, max_bank=max_bank, progress=_progress()
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


def _table(report: "KnnReport") -> str:
    rows = [("", *(f"k = {k}" for k in report.trained))]
    for name, scores in (
        ("trained", report.trained),
        ("raw pixels", report.raw_pixels),
        ("untrained", report.untrained),
    ):
        rows.append((name, *(f"{value:.2f} %" for value in scores.values())))
    lines = ["  ".join([f"{row[0]:<12}", *(f"{cell:>9}" for cell in row[1:])]) for row in rows]
    skipped = ", ".join(f"{number:,} {reason}" for reason, number in report.skipped.items()) or "none"
    lines += [
        f"chance        {100 / report.classes:.2f} % for {report.classes} classes; always the commonest "
        f"class: {report.commonest:.2f} %",
        f"bank {report.bank:,}, queries {report.queries:,}, left out: {skipped}",
        *_in_bank(report),
        f"weights of {report.samples:,} samples: {report.weights}",
    ]
    return "\n".join(lines)
