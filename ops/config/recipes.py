"""Recipes: configs that ship with the program, each with its title, source and published result."""

import difflib
import tomllib
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from ops.config import auto, binding
from ops.config.load import build
from ops.config.schema import RunConfig
from ops.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """The [recipe] table of a recipe."""

    title: str
    """One line."""
    source: str
    """Where the settings come from."""
    published: str = ""
    """What was published for them; empty when nothing was."""
    images: int = 0
    """Distinct images of the source's data set; 0 = any stream."""
    notes: str = ""
    """What the source leaves open, what differs here, what to change first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One recipe: what it is, and its settings."""

    name: str
    about: About
    values: dict[str, Any]
    """As the file has them; what it leaves out is the default."""

    @property
    def config(self) -> RunConfig:
        """All settings."""
        return build(self.values)


def names() -> list[str]:
    """Names of all recipes that are files, sorted; `auto` is none."""
    files = resources.files("ops.config").joinpath("recipe_files").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """Read a recipe by name.

    Raises:
        ConfigError: there is none of this name; the message names the nearest, or all.
    """
    known = names()
    if name == auto.NAME:
        raise ConfigError(
            f"the recipe `{name}` is chosen from a stream: give its address, as in `swavstream learn STREAM "
            f"--run RUN --recipe {name}` or `swavstream recipes show {name} --stream STREAM`"
        )
    if name not in known:
        near = difflib.get_close_matches(name, [*known, auto.NAME], n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no recipe `{name}`: {hint}")
    text = resources.files("ops.config").joinpath("recipe_files", f"{name}.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text)
    about = binding.read(About, values.pop("recipe"), path="recipe")
    return Recipe(name=name, about=replace(about, notes=about.notes.strip()), values=values)


def overview() -> str:
    """All recipes and `auto`, a line each: name and title."""
    rows = [(auto.NAME, auto.TITLE), *((name, load(name).about.title) for name in names())]
    lines = [f"  {name:<24} {title}" for name, title in rows]
    return "\n".join(lines)
