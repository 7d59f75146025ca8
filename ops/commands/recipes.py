"""`swavstream recipes`: settings that ship with the program."""

import json

import click

from ops import recipes, settings
from ops.config import advice, build


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
    click.echo(json.dumps([{"name": recipe.name, **settings.plain(recipe.about)} for recipe in found]))


@command.command()
@click.argument("name")
@click.option(
    "--set", "assignments", multiple=True, metavar="A.B=V", help="Change a setting; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Show all settings of a recipe, as TOML that `learn --config` takes.

    \b
    Examples:
        swavstream recipes show imagenet-400ep-256
        swavstream recipes show smoke --set swav.prototypes=64 > mine.toml
    """  # noqa: D301
    recipe = recipes.load(name)
    config = build(recipe.values, assignments)
    warnings = advice(config)
    about = settings.plain(recipe.about)
    steps = recipe.samples // config.batch
    if as_json:
        body = {"name": name, "recipe": about, "samples": recipe.samples, "steps": steps}
        click.echo(json.dumps({**body, "config": config.to_dict(), "warnings": warnings}))
        return
    click.echo(
        f"# recipe {name}: {recipe.samples:,} samples, {steps:,} steps" if steps else f"# recipe {name}"
    )
    for warning in warnings:
        click.echo(f"# warning: {warning}")
    click.echo(settings.to_toml({**config.to_dict(), "recipe": about}), nl=False)
