"""What the chunks of a PNG say; Pillow decodes over wrong checksums and unfinished data."""

import zlib

from stream.errors import BadRecord
from stream.png_chunks import chunks

_PIECE = 1024 * 1024


def check_png(payload: bytes, *, max_bytes: int) -> None:
    """Refuse a PNG whose pixels cannot be trusted.

    Args:
        payload: a PNG.
        max_bytes: pixel data may inflate to this; more is refused.

    Raises:
        BadRecord: `undecodable` for a wrong checksum or broken compressed pixels, `truncated` when these end
            too soon, `too_large`. A missing end chunk is no reason: all pixels are there.
    """
    inflater = zlib.decompressobj()
    inflated = 0
    for kind, body, checksum in chunks(payload):
        if kind not in {b"IHDR", b"PLTE", b"IDAT"}:
            continue
        if zlib.crc32(kind + body) != checksum:
            raise BadRecord("undecodable", f"chunk {kind.decode()} has a wrong checksum")
        if kind == b"IDAT":
            inflated += _inflated(inflater, body, max_bytes - inflated)
    if not inflater.eof:
        raise BadRecord("truncated", "the compressed pixels have no end")


def _inflated(inflater: "zlib._Decompress", data: bytes, most: int) -> int:
    """How many bytes come out of `data`; they are not kept."""
    count = 0
    try:
        while not inflater.eof and (piece := inflater.decompress(data, _PIECE)):
            count += len(piece)
            if count > most:
                raise BadRecord("too_large", "the pixels inflate beyond the limit")
            data = inflater.unconsumed_tail
    except zlib.error as error:
        raise BadRecord("undecodable", f"compressed pixels: {error}") from error
    return count


def is_plain_png(payload: bytes) -> bool:
    """Whether a PNG is of 8 bits or less a value, opaque, not interlaced, not animated, and whole."""
    kinds = []
    for kind, body, checksum in chunks(payload):
        if kind == b"IHDR" and (len(body) != 13 or body[8] > 8 or body[9] not in {0, 2, 3} or body[12]):
            return False
        if zlib.crc32(kind + body) != checksum or _is_broken_text(kind, body):
            return False  # other readers refuse such a file
        kinds.append(kind)
    whole = bool(kinds) and kinds[-1] == b"IEND" and payload[-8:-4] == b"IEND"
    return whole and not {b"tRNS", b"acTL", b"eXIf"} & set(kinds)


def _is_broken_text(kind: bytes, body: bytes) -> bool:
    """Whether a compressed text or profile is none, or inflates beyond reason."""
    if kind not in {b"iCCP", b"zTXt"}:
        return False
    method, packed = body.partition(b"\0")[2][:1], body.partition(b"\0")[2][1:]
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(packed, _PIECE)
    except zlib.error:
        return True
    return method != b"\0" or not inflater.eof
