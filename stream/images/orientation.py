"""How a photo is turned, read in one place for every format, and the turning.

Cameras store what the sensor saw and say beside it how the picture is to be shown. The EXIF block decides:
the first one that states a value of 1 to 8. Where none does, XMP is asked. AVIF states it in its own header
instead (`irot`, `imir`), where only the decoder reads it.
"""

import re
import zlib
from collections.abc import Iterator

from torch import Tensor

from stream.images.exif import first_directory, orientation_of_block
from stream.images.jpeg import APP1, START_OF_SCAN, segments
from stream.images.png_chunks import PNG_SIGNATURE, chunks

_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]")
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_OF_TIFF = 700
_MOST_TEXT = 1 << 20
"""Bytes that a text of a PNG may inflate to."""


def orientation_of(payload: bytes) -> int:
    """How an encoded JPEG, PNG, WebP or TIFF is turned.

    Args:
        payload: the encoded image; what lies behind it plays no part.

    Returns:
        1 .. 8 as in EXIF; 1 = upright, also where nothing is stated and in other formats.
    """
    from_xmp = 0
    for is_exif, block in _blocks(payload):
        if is_exif:
            value = orientation_of_block(block)
            if value:
                return value
        elif not from_xmp:
            found = _XMP.search(block)
            from_xmp = int(found[1]) if found else 0
    return from_xmp or 1


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn and mirror an image that is stored with an orientation.

    Args:
        pixels: [..., H, W].
        orientation: 1 .. 8 as in EXIF.

    Returns:
        [..., H, W], or [..., W, H] from 5 on.
    """
    if orientation >= 5:
        pixels = pixels.transpose(-2, -1)
    # Which axes are to be reversed, after rows and columns were exchanged.
    axes: dict[int, tuple[int, ...]] = {
        2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,),
    }  # fmt: skip
    return pixels.flip(axes[orientation]) if orientation in axes else pixels


def _blocks(payload: bytes) -> Iterator[tuple[bool, bytes]]:
    """EXIF (True) and XMP blocks, in the order of the file."""
    if payload.startswith(b"\xff\xd8"):
        return _of_jpeg(payload)
    if payload.startswith(PNG_SIGNATURE):
        return _of_png(payload)
    if payload.startswith(b"RIFF") and payload[8:12] == b"WEBP":
        return _of_webp(payload)
    return _of_tiff(payload)


def _of_jpeg(payload: bytes) -> Iterator[tuple[bool, bytes]]:
    if b"Exif\0" not in payload and b"tiff:Orientation" not in payload:
        return  # most images of a stream: walking the segments takes longer
    for marker, _, body, stop in segments(payload):
        if marker == START_OF_SCAN:
            return
        if marker == APP1:
            content = payload[body:stop]
            if content.startswith(b"Exif\0"):
                yield True, content[6:]  # a few writers pad the name with something else than a zero
            elif content.startswith(_XMP_OF_JPEG):
                yield False, content


def _of_png(payload: bytes) -> Iterator[tuple[bool, bytes]]:
    for kind, body, _ in chunks(payload):
        name, _, text = body.partition(b"\0")
        if kind == b"eXIf":
            yield True, body
        elif kind in {b"zTXt", b"tEXt"} and name in {b"Raw profile type exif", b"Raw profile type APP1"}:
            yield True, _unhexed(_inflated(text[1:]) if kind == b"zTXt" else text)
        elif kind == b"iTXt" and name == b"XML:com.adobe.xmp":
            packed, text = text[:1], text[2:].split(b"\0", 2)[-1]
            yield False, _inflated(text) if packed == b"\x01" else text


def _of_webp(payload: bytes) -> Iterator[tuple[bool, bytes]]:
    at = 12
    while at + 8 <= len(payload):
        kind, size = payload[at : at + 4], int.from_bytes(payload[at + 4 : at + 8], "little")
        if kind in {b"EXIF", b"XMP "}:
            yield kind == b"EXIF", payload[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _of_tiff(payload: bytes) -> Iterator[tuple[bool, bytes]]:
    directory = first_directory(payload)
    if directory is None:
        return
    yield True, payload
    for entry in directory.entries:
        if entry.tag == _XMP_OF_TIFF and entry.kind in {1, 7}:
            at = int.from_bytes(entry.value, directory.order)
            yield False, payload[at : at + entry.number]


def _inflated(data: bytes) -> bytes:
    """What a compressed text begins with; empty where it is none."""
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT)
    except zlib.error:
        return b""


def _unhexed(text: bytes) -> bytes:
    """ImageMagick's form of an EXIF block: its name, its length, and its bytes as hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.strip().split(b"\n")[2:]).decode("ascii"))
    except ValueError:
        return b""
