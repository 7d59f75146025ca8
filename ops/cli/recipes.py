"""`swavstream recipes`: settings that ship with the program."""

import json
from typing import TYPE_CHECKING

import click

from ops.config import auto, binding, recipes

if TYPE_CHECKING:
    from ops.config.recipe_report import Resolved


@click.group()
def command() -> None:
    """List and show the settings that ship with the program.

    \b
    Examples:
        swavstream recipes list
        swavstream recipes show cifar10-onepass > mine.toml
    """  # noqa: D301


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_recipes(as_json: bool) -> None:
    """List all recipes, a line each.

    \b
    Examples:
        swavstream recipes list
        swavstream recipes list --json
    """  # noqa: D301
    if not as_json:
        click.echo(recipes.overview())
        return
    chosen = recipes.About(title=auto.TITLE, source="ours: chosen from a stream and a machine")
    found = [(auto.NAME, chosen), *((name, recipes.load(name).about) for name in recipes.names())]
    click.echo(json.dumps([{"name": name, **binding.plain(about)} for name, about in found]))


@command.command()
@click.argument("name")
@click.option(
    "--set", "assignments", multiple=True, metavar="A.B=V", help="Change a setting; may be repeated."
)
@click.option("--stream", metavar="STREAM", help="Also say how the recipe fits this stream.")
@click.option(
    "--ranks", metavar="N", type=click.IntRange(min=1),
    help="Learners that share the run; one a CUDA device where it is not given.",
)  # fmt: skip
@click.option(
    "--budget-minutes", type=click.FloatRange(min=0, min_open=True), metavar="M",
    help="Of auto: time for a sealed stream, of processors or GPUs; 30 where it is not given.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(
    name: str,
    assignments: tuple[str, ...],
    stream: str | None,
    ranks: int | None,
    budget_minutes: float | None,
    as_json: bool,
) -> None:
    """Show all settings of a recipe, as TOML that `learn --config` takes, and how they fit this machine.

    Memory is estimated for one rank, without the program itself. With --stream it also says of how many
    shards, and of how many classes where a local stream has labels, the first batch would be.

    The recipe `auto` is chosen from the stream and this machine, with a line for each choice that says why.
    The trial of nets takes some 20 seconds the first time.

    \b
    Examples:
        swavstream recipes show imagenet-400ep-256
        swavstream recipes show cifar10-onepass --stream TRAIN/
        swavstream recipes show smoke --set swav.prototypes=64 > mine.toml
        swavstream recipes show auto --stream TRAIN/
    """  # noqa: D301
    from ops.config import recipe_report

    if budget_minutes is not None and name != auto.NAME:
        raise click.UsageError(f"--budget-minutes is for the recipe auto, which {name} is not")
    if name == auto.NAME and stream is not None:
        shown = _chosen(stream, assignments, ranks=ranks, budget_minutes=budget_minutes)
    else:
        shown = recipe_report.resolve(name, assignments, stream=stream, ranks=ranks)
    click.echo(json.dumps(shown.to_json()) if as_json else shown.to_toml(), nl=as_json)


def _chosen(
    stream: str, assignments: tuple[str, ...], *, ranks: int | None, budget_minutes: float | None
) -> "Resolved":
    """What `learn --recipe auto` would choose for a stream."""
    from ops.config import recipe_report
    from ops.train import auto_trial
    from stream.kafka_topic.address import is_topic

    choice = auto_trial.choice_for(
        stream,
        given=assignments,
        budget_minutes=budget_minutes,
        ranks=ranks,
        say=lambda text: click.echo(text, err=True),
    )
    # What `--stream` says besides is of shards.
    shards = None if is_topic(stream) else stream
    return recipe_report.resolve(auto_trial.recipe_of(choice), stream=shards, ranks=ranks, choice=choice)
