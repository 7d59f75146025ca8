"""`swavstream assign`: the prototype of each image."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ops.inference.assign import Assignment


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("source")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, an image each.")
def command(run_dir: Path, source: str, as_json: bool) -> None:
    """Give each image of SOURCE the prototype of RUN that it is nearest to.

    SOURCE is a folder, a tar, a quoted glob or a stream. Score is the cosine with the prototype, margin how
    much nearer it is than the second. An image that cannot be used is listed with the reason.

    \b
    Examples:
        swavstream assign RUN/ PICTURES/
        swavstream assign RUN/ 'MORE/*.tar' --json > assigned.jsonl
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from ops.inference import assign, load_model
    from stream.processes import decoders_silenced

    network = load_model.load(run_dir)
    with decoders_silenced():
        used, lost = _printed(assign.assign(network, source), as_json=as_json)
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(lost.items())) or "none"
    click.echo(
        f"{used.total():,} images assigned to {len(used):,} prototypes; not usable: {reasons}; "
        f"weights of {network.samples:,} samples: {network.weights}",
        err=True,
    )


def _printed(answers: "Iterable[Assignment]", *, as_json: bool) -> tuple[Counter[int], Counter[str]]:
    """A line for each image; how many each prototype has, and how many are not usable, by reason."""
    used: Counter[int] = Counter()
    lost: Counter[str] = Counter()
    for answer in answers:
        if answer.prototype is None:
            lost[answer.reason] += 1
        else:
            used[answer.prototype] += 1
        if as_json:
            click.echo(json.dumps(answer.to_json()))
        elif answer.prototype is None:
            click.echo(f"{'-':>6}  {'-':>6}  {'-':>6}  {answer.name}  ({answer.reason})")
        else:
            click.echo(f"{answer.prototype:>6}  {answer.score:6.3f}  {answer.margin:6.3f}  {answer.name}")
    return used, lost
