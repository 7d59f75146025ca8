"""`swavstream demo`: all of it at once, on drawn pictures or on your own."""

import json
import sys
from pathlib import Path

import click


@click.command()
@click.option("--images", default="", metavar="SOURCE", help="Folder, tar or glob to learn from; else drawn.")
@click.option("--seconds", default=120.0, show_default=True, help="How long it takes, about.")
@click.option(
    "--run",
    "run_dir",
    default="demo-run",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Run directory; an earlier demo in it is replaced.",
)
@click.option("--seed", default=0, show_default=True, help="Of pictures and learner.")
@click.option(
    "--port", type=int, help="Of metrics and live page; 0 takes a free one.  [default: 9464 if free]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(images: str, seconds: float, run_dir: Path, seed: int, port: int | None, as_json: bool) -> int:
    """Draw images into a growing stream, learn from it in one pass, and show what came of it.

    Needs no server, no network and no data. Leaves a contact sheet and an HTML summary in the run directory.
    Ctrl-C ends it early; it still sums up.

    \b
    Examples:
        swavstream demo
        swavstream demo --images PICTURES/ --seconds 300 --run my-demo
    """  # noqa: D301  click reads the escape as "do not rewrap"
    from ops.demo import report
    from ops.demo import run as demo_run

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    options = demo_run.DemoOptions(run_dir=run_dir, images=images, seconds=seconds, seed=seed, port=port)
    say(f"learning from {images or 'drawn pictures'} for about {seconds:.0f} s; Ctrl-C ends it early")
    run = demo_run.run_demo(options, say=say, out=sys.stderr)
    say("judging what was learned, drawing the contact sheet")
    result = report.conclude(run)
    say(report.render_text(result))
    if as_json:
        click.echo(json.dumps(result.to_json()))
    return run.exit_code
