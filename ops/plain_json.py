"""JSON that every reader accepts: numbers that are not finite become null."""

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value with every inf and nan replaced by None, at any depth; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def dumps(value: Any) -> str:
    """One line of JSON, keys in their order, without inf and nan."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
