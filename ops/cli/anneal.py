"""`swavstream anneal`: an annealed copy of a run for release."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.distributed.environment import launched, quiet_torch

if TYPE_CHECKING:
    from ops.rundir.summary import RunSummary
    from ops.train.anneal import Copy


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
@click.option(
    "--nproc", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Ranks on this machine: one for each GPU.",
)  # fmt: skip
@click.option(
    "--make-only", is_flag=True,
    help="Make the copy and print the `learn` command that goes on with it, for several machines.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, the last line.")
def command(
    run_dir: Path,
    samples: int | None,
    out: Path | None,
    stream: str | None,
    assignments: tuple[str, ...],
    nproc: int,
    make_only: bool,
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
        swavstream anneal RUN/ --nproc 8
    """  # noqa: D301
    quiet_torch()
    from ops.rundir.summary import read_summary
    from ops.train import anneal
    from ops.train.signals import StopRequest
    from ops.train.start import learn

    if launched() is not None:
        raise click.UsageError(
            "anneal starts its ranks itself (--nproc); for several machines make the copy with --make-only, "
            "and start the `learn` command that it prints on each (--nnodes)"
        )
    out = out if out is not None else run_dir.with_name(f"{run_dir.name}-annealed")
    copy = anneal.prepare(run_dir, out, samples=samples, stream=stream, assignments=assignments, ranks=nproc)
    verb = "made at" if copy.made else "goes on; it was made at"
    click.echo(f"copy {out} {verb} {copy.start:,} samples, ends at {copy.end:,}", err=True)
    as_rank = ["learn", f"--run={out}", *(f"--set={one}" for one in assignments), *(["--json"] * as_json)]
    if make_only:
        click.echo(shlex.join(["swavstream", *as_rank, copy.stream]))
        return 0
    if nproc > 1:
        from ops.distributed.launcher import launch

        verbose = ["--verbose"] if click.get_current_context().find_root().params.get("verbose") else []
        code = launch([*verbose, *as_rank, "--", copy.stream], nproc=nproc)
        _warn(copy, read_summary(out))
        return code
    stop = StopRequest()
    summary = learn(copy.stream, out, copy.config, stop=stop, out=sys.stderr)
    _warn(copy, summary)
    click.echo(json.dumps(summary.to_json()) if as_json else summary.render())
    return stop.exit_code


def _warn(copy: "Copy", summary: "RunSummary | None") -> None:
    if summary is not None and summary.status == "finished" and summary.samples < copy.end:
        click.echo(
            f"warning: the stream ended {copy.end - summary.samples:,} samples before its rate had fallen",
            err=True,
        )
