"""`swavstream anneal`: an annealed copy of a run for release."""

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--samples", metavar="N", type=click.IntRange(min=1),
    help="Samples over which the rate falls to zero; a fifth of those seen where it is not given.",
)  # fmt: skip
@click.option(
    "--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the copy; RUN-annealed where it is not given.",
)  # fmt: skip
@click.option(
    "--stream", metavar="STREAM", help="Where the stream is now; as the run has it where it is not given."
)
@click.option(
    "--set", "assignments", multiple=True, metavar="A.B=V", help="Change a setting of the copy; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, the last line.")
def command(
    run_dir: Path,
    samples: int | None,
    out: Path | None,
    stream: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make an annealed copy of RUN for release: the learning rate falls to zero over the next samples.

    The copy goes on from the newest checkpoint of RUN and reads on in its stream; RUN itself is left alone
    and may go on learning. The copy is a run of its own, with its own snapshots; the same command goes on
    with it after an interruption.

    \b
    Examples:
        swavstream anneal RUN/
        swavstream anneal RUN/ --samples 1000000 --out RELEASE/
    """  # noqa: D301
    from ops import anneal
    from ops.learn import learn
    from ops.signals import StopRequest

    out = out if out is not None else run_dir.with_name(f"{run_dir.name}-annealed")
    copy = anneal.prepare(run_dir, out, samples=samples, stream=stream, assignments=assignments)
    verb = "made at" if copy.made else "goes on; it was made at"
    click.echo(f"copy {out} {verb} {copy.start:,} samples, ends at {copy.end:,}", err=True)
    stop = StopRequest()
    summary = learn(copy.stream, out, copy.config, stop=stop, out=sys.stderr)
    if summary.status == "finished" and summary.samples < copy.end:
        click.echo(
            f"warning: the stream ended {copy.end - summary.samples:,} samples before its rate had fallen",
            err=True,
        )
    click.echo(json.dumps(summary.to_json()) if as_json else summary.told())
    return stop.exit_code
