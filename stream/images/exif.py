"""The first directory of a TIFF file or of an EXIF block, which is one."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

ORIENTATION = 0x0112
_INTEGERS = {1: 1, 3: 2, 4: 4, 8: 2, 9: 4, 16: 8}
"""Bytes of BYTE, SHORT, LONG, SSHORT, SLONG and LONG8."""


class Entry(NamedTuple):
    """One tag with its value."""

    tag: int
    kind: int
    number: int
    value: bytes
    """The field of the value: the value itself where it is short."""
    raw: bytes
    """The whole entry."""


class Directory(NamedTuple):
    """Where a directory lies, and what is in it as far as it is there."""

    order: Literal["little", "big"]
    large: bool
    """BigTIFF: fields of 8 bytes."""
    at: int
    entries: list[Entry]
    stated: int
    """Number of entries that it says it has."""


def first_directory(block: bytes) -> Directory | None:
    """The first directory; None when the bytes do not begin like a TIFF."""
    order: Literal["little", "big"]
    if block.startswith((b"II*\0", b"II+\0")):
        order = "little"
    elif block.startswith((b"MM\0*", b"MM\0+")):
        order = "big"
    else:
        return None
    large = b"+" in block[2:4]
    at = int.from_bytes(block[8:16] if large else block[4:8], order)
    head, size = (8, 20) if large else (2, 12)
    stated = int.from_bytes(block[at : at + head], order)
    fields = range(at + head, min(at + head + stated * size, len(block) - size + 1), size)
    return Directory(order, large, at, list(_entries(block, fields, size, order)), stated)


def _entries(block: bytes, fields: range, size: int, order: Literal["little", "big"]) -> Iterator[Entry]:
    for at in fields:
        raw = block[at : at + size]
        middle = 4 + (size - 4) // 2
        yield Entry(
            int.from_bytes(raw[:2], order),
            int.from_bytes(raw[2:4], order),
            int.from_bytes(raw[4:middle], order),
            raw[middle:],
            raw,
        )


def orientation_of_block(block: bytes) -> int:
    """What an EXIF block says of how the image is turned: 1 .. 8, 0 = nothing that can be used.

    Some writers put the name of the block before it, some twice; some write the value as LONG.
    """
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    directory = first_directory(block)
    for entry in directory.entries if directory else ():
        width = _INTEGERS.get(entry.kind, 0)
        if directory and entry.tag == ORIENTATION and entry.number == 1 and 0 < width <= len(entry.value):
            value = int.from_bytes(entry.value[:width], directory.order)
            return value if 1 <= value <= 8 else 0
    return 0
