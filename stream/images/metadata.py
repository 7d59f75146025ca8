"""An image without what none of its pixels depends on.

Pillow reads profiles, texts, dates and camera data while it opens a file, and refuses the file when one of
them is broken, large or of a kind that it does not know. None of it is used here, so none of it is shown to
Pillow. How the image is turned is read from the original bytes (`stream.images.orientation`), and taken out here, so
that no decoder turns it as well.
"""

import re
import zlib

from stream.images.exif import Directory, first_directory
from stream.images.jpeg import bare_jpeg
from stream.images.png_chunks import PNG_SIGNATURE, chunks

_PNG_PIXELS = frozenset({b"tRNS", b"sBIT"})
"""Ancillary chunks that pixels depend on."""

# TIFF 6.0 and its technical notes: size, samples, compression and its parameters, colour, strips and tiles,
# the colour profile (34675), LERC's parameters (50674).
_TIFF_PIXELS = frozenset(
    {*range(255, 260), 262, 263, 264, 265, 266, 273, *range(277, 282), 284, 290, 291, 292, 293, 301, 317, 320}
    | {
        321,
        322,
        323,
        324,
        325,
        332,
        334,
        336,
        338,
        339,
        340,
        341,
        342,
        347,
        *range(512, 522),
        *range(529, 533),
    }
    | {32995, 32996, 34675, 50674}
)
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def without_metadata(payload: bytes) -> bytes:
    """An encoded image with the same pixels, as stored and not turned, without its metadata.

    JPEG, PNG, TIFF and AVIF; other formats come back as they are: none of their metadata is in the way.
    """
    if payload.startswith(b"\xff\xd8\xff"):
        return bare_jpeg(payload)
    if payload.startswith(PNG_SIGNATURE):
        return _bare_png(payload)
    if payload[4:8] == b"ftyp":
        return _AVIF_EXIF.sub(rb"\1skip", payload)
    directory = first_directory(payload)
    return payload if directory is None else _bare_tiff(payload, directory)


def _bare_png(payload: bytes) -> bytes:
    """Critical chunks and those of `_PNG_PIXELS`; animations lose all but the image that any reader shows."""
    kept, at, kind = [PNG_SIGNATURE], len(PNG_SIGNATURE), b""
    for kind, body, checksum in chunks(payload):
        stop = at + 12 + len(body)
        sound = kind != b"sBIT" or zlib.crc32(kind + body) == checksum
        if not kind[0] & 0x20 or (kind in _PNG_PIXELS and sound):
            kept.append(payload[at:stop])
        at = stop
    cut = payload[at + 4 : at + 8]
    if kind != b"IEND" and not (cut[:1].islower() or cut == b"IEND"):
        kept.append(payload[at:])  # pixels that are cut off
    return b"".join(kept)


def _bare_tiff(payload: bytes, directory: Directory) -> bytes:
    """The first directory with the tags of `_TIFF_PIXELS`, and no directory after it."""
    if len(directory.entries) != directory.stated:
        return payload
    kept = [entry.raw for entry in directory.entries if entry.tag in _TIFF_PIXELS]
    head, end = (8, 8) if directory.large else (2, 4)
    content = len(kept).to_bytes(head, directory.order) + b"".join(kept) + bytes(end)
    return payload[: directory.at] + content + payload[directory.at + len(content) :]
