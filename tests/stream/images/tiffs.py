"""TIFFs of any layout, written byte by byte from levels between 0 and 1."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.float64]

WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def samples(levels: Levels, bits: int, kind: int) -> NDArray[Any]:
    """Levels as numbers of a type; unsigned ones of odd sizes as uint64."""
    if kind == FLOAT:
        return levels.astype(f"f{bits // 8}")
    top = 2**bits - 1 if kind == UNSIGNED else 2 ** (bits - 1) - 1
    numbers: NDArray[Any] = np.rint(levels * top).astype(np.uint64 if kind == UNSIGNED else np.int64)
    return numbers


def stored(values: NDArray[Any], bits: int, kind: int, order: str) -> bytes:
    """Rows of samples as bytes; those of less than a byte, or across bytes, from the left."""
    if kind == FLOAT or bits in {8, 16, 32, 64}:
        letter = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[kind]
        return values.astype(f"{order}{letter}{bits // 8}").tobytes()
    rows = values.reshape(len(values), -1)
    bitwise = (rows[..., None] >> np.arange(bits - 1, -1, -1).astype(np.uint64)) & np.uint64(1)
    return np.packbits(bitwise.astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()


def tiff(
    values: NDArray[Any],
    photometric: int,
    bits: int,
    kind: int = UNSIGNED,
    *,
    order: str = "<",
    planar: bool = False,
    rows: int | None = None,
    deflate: bool = False,
    more: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF of [H, W, n] samples in strips of `rows` rows, with `more` tags."""
    height, width, count = values.shape
    rows = rows or height
    planes = [values[..., i] for i in range(count)] if planar else [values]
    strips = [
        stored(plane[top : top + rows], bits, kind, order)
        for plane in planes
        for top in range(0, height, rows)
    ]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    offsets, body = [], b""
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip + b"\0" * (len(strip) % 2)
    tags: dict[int, Sequence[int]] = {
        256: [width], 257: [height], 258: [bits] * count, 259: [8 if deflate else 1], 262: [photometric],
        273: offsets, 277: [count], 278: [rows], 279: [len(strip) for strip in strips],
        284: [2 if planar else 1], 339: [kind] * count,
    }  # fmt: skip
    tags.update(more or {})
    directory, behind = struct.pack(f"{order}H", len(tags)), b""
    start = 8 + len(body)
    for tag in sorted(tags):
        letter = "I" if tag in {273, 279} else "H"
        packed = struct.pack(f"{order}{len(tags[tag])}{letter}", *tags[tag])
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + 2 + 12 * len(tags) + 4 + len(behind))
            behind += packed + b"\0" * (len(packed) % 2)
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[letter], len(tags[tag])) + place
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return header + body + directory + b"\0\0\0\0" + behind
