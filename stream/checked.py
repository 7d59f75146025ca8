"""Small JSON objects with a checksum of their own: what was changed is never taken for what was written."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

CHECK = "check"
_NOT_READ = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def encode_checked(body: Mapping[str, Any]) -> bytes:
    """The JSON of an object, and at its end the CRC-32 of the rest. Keys are text, all the way down."""
    text = _text(body)
    return f'{text[:-1]},"{CHECK}":{zlib.crc32(text.encode("ascii"))}}}'.encode("ascii")


def decode_checked(data: bytes) -> dict[str, Any]:
    """Read what `encode_checked` wrote, without the checksum.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        body: dict[str, Any] = json.loads(data)
        stated = body.pop(CHECK)
        found = zlib.crc32(_text(body).encode("ascii"))
    except _NOT_READ as error:
        raise ValueError(f"it cannot be read: {error!r}") from error
    if stated != found or isinstance(stated, bool):
        raise ValueError(f"its checksum is {stated!r}, its content has {found}")
    return body


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
