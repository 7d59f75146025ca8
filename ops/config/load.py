"""From TOML, a recipe and `--set a.b=v` to the settings of a run. Nothing heavy is imported."""

import copy
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ops.config import binding
from ops.config.schema import RunConfig
from ops.errors import ConfigError


def load_values(path: Path) -> dict[str, Any]:
    """Read a config file into nested plain values, without its [recipe] table.

    Raises:
        ConfigError: the file is missing, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    return parse_values(text, str(path))


def parse_values(text: str, name: str) -> dict[str, Any]:
    """Parse TOML into nested plain values, without the [recipe] table that describes it.

    Raises:
        ConfigError: not TOML; the message names `name` and the place.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    values.pop("recipe", None)
    return values


def build(values: Mapping[str, Any], assignments: Iterable[str] = ()) -> RunConfig:
    """A config from nested plain values and `a.b=v` assignments, the later ones winning.

    Raises:
        ConfigError: see `RunConfig.from_dict` and `settings.assign`.
    """
    # Over the defaults, so that `crops.1.count=4` has something to change; checked once, at the end.
    merged = _merged(RunConfig().to_dict(), values)
    for assignment in assignments:
        binding.assign(merged, assignment)
    return RunConfig.from_dict(merged)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(below, value)
        else:
            merged[name] = copy.deepcopy(value)
    return merged
