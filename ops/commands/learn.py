"""`swavstream learn`: learn from a stream."""

import json
import sys
from pathlib import Path

import click

from ops import recipes
from ops.config import advice
from ops.signals import StopRequest


@click.command()
@click.argument("stream")
@click.option(
    "--run", "run_dir", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Run directory; made when missing. A run that is there goes on where it was.",
)  # fmt: skip
@click.option(
    "-c", "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Settings, TOML."
)
@click.option("--recipe", metavar="NAME", help="Settings that ship with the program.")
@click.option(
    "--set", "assignments", multiple=True, metavar="A.B=V", help="Change a setting; may be repeated."
)
@click.option("--wait", is_flag=True, help="Wait for a stream that does not exist yet.")
@click.option(
    "--accept-bad-until", metavar="RECORDS", default="",
    help="Go on although too many records are unusable, until the run has read so many; or `now`.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, the last line.")
def command(
    stream: str,
    run_dir: Path,
    file: Path | None,
    recipe: str | None,
    assignments: tuple[str, ...],
    wait: bool,
    accept_bad_until: str,
    as_json: bool,
) -> int:
    """Learn from STREAM, a directory or URL of shards, in one pass.

    A sealed stream ends; an open one is waited on for ever. Ctrl-C and SIGTERM save, and the same command
    goes on from there. Progress is written to stderr, the summary to stdout.

    A run that has stopped because too many records were unusable goes past them with --accept-bad-until: the
    budget counts again once the run has read so many records, used or not (`now`: all that the stream has).

    \b
    Examples:
        swavstream learn TRAIN/ --run RUN/ --recipe cifar10-onepass
        swavstream learn TRAIN/ --run RUN/ --config mine.toml --set optim.learning_rate=1e-3
        swavstream learn TRAIN/ --run RUN/ --recipe smoke --set server.port=0 --json
    """  # noqa: D301
    if file is None and recipe is None and not (run_dir / "run.json").exists():
        raise click.UsageError(f"give --config FILE or --recipe NAME, one of\n{recipes.overview()}")
    config = recipes.choose_config(run_dir, file=file, recipe=recipe, assignments=assignments)
    from ops.learn import learn

    for sentence in advice(config):
        click.echo(f"warning: {sentence}", err=True)
    stop = StopRequest()
    summary = learn(
        stream, run_dir, config, wait=wait, accept_bad_until=accept_bad_until, stop=stop, out=sys.stderr
    )
    click.echo(json.dumps(summary.to_json()) if as_json else summary.told())
    return stop.exit_code
