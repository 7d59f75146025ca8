"""Between TOML and frozen dataclasses: reading with names and types checked, and `--set a.b=v`.

Nothing here knows a particular setting; the dataclasses in the `config.py` files do.
"""

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ops.errors import ConfigError

Config = TypeVar("Config")


def read(
    kind: type[Config], values: Mapping[str, Any], *, path: str = "", root: type[Any] | None = None
) -> Config:
    """Make a config dataclass out of nested plain values.

    Args:
        kind: the dataclass to make.
        values: what TOML gives: str, int, float, bool, lists and tables.
        path: dotted name of this table, for messages; "" at the top.
        root: the dataclass at the top, where the nearest key is looked for when this one has none.

    Raises:
        ConfigError: unknown key (names the nearest), missing key, wrong type, or a value out of its bounds.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(unknown_key(kind, name, path, root=root))
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"config key `{_join(path, name)}` is missing")
    taken = {
        name: _convert(hints[name], value, _join(path, name), root or kind) for name, value in values.items()
    }
    try:
        return kind(**taken)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def plain(config: Any) -> Any:
    """A config as nested dicts, lists and scalars: what `read` takes back, and JSON and TOML can hold."""
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, tuple | list):
        return [plain(value) for value in config]
    return config


def assign(values: dict[str, Any], assignment: str) -> None:
    """Apply one `a.b=v` to nested values in place; v is TOML, or else taken as a bare string.

    A part that is a number picks an element of a list, so `crops.1.count=6` works.

    Raises:
        ConfigError: no `=`, an empty name, or a path that leads through something that is not a table.
    """
    name, equals, text = assignment.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set needs the form a.b=value, got {assignment!r}")
    place: Any = values
    for depth, part in enumerate(parts[:-1]):
        step = _element(place, part, ".".join(parts[: depth + 1]))
        if step is None:
            step = place[part] = {}
        place = step
    if isinstance(place, list):
        _element(place, parts[-1], ".".join(parts))
        place[int(parts[-1])] = toml_value(text)
    elif isinstance(place, dict):
        place[parts[-1]] = toml_value(text)
    else:
        raise ConfigError(f"config key `{'.'.join(parts[:-1])}` is a value, not a table: cannot set {name!r}")


def toml_value(text: str) -> Any:
    """One value in TOML's notation; what is not TOML is a bare string (`cpu` needs no quotes)."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def unknown_key(kind: type[Any], name: str, path: str, *, root: type[Any] | None = None) -> str:
    """The message for a key that does not exist: names the nearest of the same table, else of all tables."""
    asked = _join(path, name)
    here = [field.name for field in fields(kind)]
    anywhere = dotted_names(root or kind)
    same = [full for full in anywhere if full.rpartition(".")[2] == name]
    near = [_join(path, close) for close in difflib.get_close_matches(name, here, n=1, cutoff=0.6)]
    for full in same + near + difflib.get_close_matches(asked, anywhere, n=1, cutoff=0.6):
        return f"unknown config key `{asked}`: did you mean `{full}`?"
    return f"unknown config key `{asked}`: known here are {', '.join(here)}"


def dotted_names(kind: type[Any], path: str = "") -> list[str]:
    """Every key of a config dataclass and of the tables in it, in the order of definition."""
    names = []
    for name, hint in get_type_hints(kind).items():
        full = _join(path, name)
        names += dotted_names(hint, full) if is_dataclass(hint) and isinstance(hint, type) else [full]
    return names


def filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config with the defaults of what it does not name, in every table."""
    whole = dict(defaults) | dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            whole[name] = filled(value, defaults[name])
    return whole


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) of every setting that is not the same in two plain configs."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        full = _join(path, name)
        one, other = old.get(name), new.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differences(one, other, full)
        elif one != other:
            found[full] = (one, other)
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _element(place: Any, part: str, full: str) -> Any:
    if isinstance(place, list):
        if not part.isdigit() or int(part) >= len(place):
            raise ConfigError(f"config key `{full}`: the list has elements 0 to {len(place) - 1}")
        return place[int(part)]
    if not isinstance(place, dict):
        raise ConfigError(f"config key `{full}` leads through a value that is not a table")
    return place.get(part)


def _convert(hint: Any, value: Any, path: str, root: type[Any]) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"config key `{path}` is a table, got {value!r}")
        return read(hint, value, path=path, root=root)
    if get_origin(hint) is tuple:
        return _convert_tuple(hint, value, path, root)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is a float in TOML, and how people write a million samples
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{path}: a config field has one type, not {hint}")
    if type(value) is not hint:
        wanted = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]
        raise ConfigError(f"config key `{path}` must be {wanted}, got {value!r}")
    return value


def _convert_tuple(hint: Any, value: Any, path: str, root: type[Any]) -> tuple[Any, ...]:
    kinds = get_args(hint)
    rows = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, Mapping):
        raise ConfigError(f"config key `{path}` is a list, got one table: write [[{path}]]")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(rows)
    if len(kinds) != len(rows):
        raise ConfigError(f"config key `{path}` needs {len(kinds)} values, got {value!r}")
    numbered = zip(kinds, rows, range(len(rows)), strict=True)
    return tuple(_convert(kind, row, f"{path}.{number}", root) for kind, row, number in numbered)
