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
@click.option(
    "--until", default="", metavar="END",
    help="Where a Kafka topic ends for this run: now, an offset, or a time (2026-05-01T12:00:00+00:00).",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for a stream that does not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, the last line.")
def command(
    stream: str,
    run_dir: Path,
    file: Path | None,
    recipe: str | None,
    assignments: tuple[str, ...],
    until: str,
    wait: bool,
    as_json: bool,
) -> int:
    """Learn from STREAM, a directory or URL of shards or kafka://HOST:PORT/TOPIC, in one pass.

    A sealed stream ends; an open one is waited on for ever. A topic is open unless --until says where it ends
    for this run; its partitions are the lanes. Ctrl-C and SIGTERM save, and the same command
    goes on from there. Progress is written to stderr, the summary to stdout.

    \b
    Examples:
        swavstream learn TRAIN/ --run RUN/ --recipe cifar10-onepass
        swavstream learn TRAIN/ --run RUN/ --config mine.toml --set optim.learning_rate=1e-3
        swavstream learn TRAIN/ --run RUN/ --recipe smoke --set server.port=0 --json
        swavstream learn kafka://HOST:9092/images --run RUN/ --recipe smoke --set lanes=8 --until now
    """  # noqa: D301
    if file is None and recipe is None and not (run_dir / "run.json").exists():
        raise click.UsageError(f"give --config FILE or --recipe NAME, one of\n{recipes.overview()}")
    config = recipes.choose_config(run_dir, file=file, recipe=recipe, assignments=assignments)
    from ops.learn import learn

    for sentence in advice(config):
        click.echo(f"warning: {sentence}", err=True)
    stop = StopRequest()
    summary = learn(stream, run_dir, config, until=until, wait=wait, stop=stop, out=sys.stderr)
    click.echo(json.dumps(summary.to_json()) if as_json else summary.told())
    return stop.exit_code
