"""`swavstream recipes`: settings that ship with the program."""

import json

import click

from ops.config import binding, recipes


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
    found = [recipes.load(name) for name in recipes.names()]
    click.echo(json.dumps([{"name": recipe.name, **binding.plain(recipe.about)} for recipe in found]))


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(
    name: str, assignments: tuple[str, ...], stream: str | None, ranks: int | None, as_json: bool
) -> None:
    """Show all settings of a recipe, as TOML that `learn --config` takes, and how they fit this machine.

    Memory is estimated for one rank, without the program itself. With --stream it also says of how many
    shards, and of how many classes where a local stream has labels, the first batch would be.

    \b
    Examples:
        swavstream recipes show imagenet-400ep-256
        swavstream recipes show cifar10-onepass --stream TRAIN/
        swavstream recipes show smoke --set swav.prototypes=64 > mine.toml
    """  # noqa: D301
    from ops.config import recipe_report

    shown = recipe_report.resolve(name, assignments, stream=stream, ranks=ranks)
    click.echo(json.dumps(shown.to_json()) if as_json else shown.to_toml(), nl=as_json)
