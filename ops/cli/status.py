"""`swavstream status`: how a run stands."""

import json
from pathlib import Path

import click

from ops.rundir.status import read_status


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_dir: Path, as_json: bool) -> None:
    """Say how the run in RUN stands: running or not, samples, loss, where things are.

    Asks the live run when there is one, and else reads the directory. Changes nothing.

    \b
    Examples:
        swavstream status RUN/
        swavstream status RUN/ --json
    """  # noqa: D301
    status = read_status(run_dir)
    click.echo(json.dumps(status.to_json()) if as_json else status.render())
