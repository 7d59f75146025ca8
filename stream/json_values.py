"""Values of JSON files of a stream: refused when they are not of the type that the field has."""


def whole(value: object, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """An integer within bounds. Raises ValueError; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"expected a whole number in {least}..{most}, got {value!r}")
    return value


def string(value: object) -> str:
    """A string. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value
