"""From the bytes of a file to what the stream stores: refused with a reason, or made upright and small.

What is decoded here is decoded by the same function as in learning, so that what is stored can be used. An
image that is sound, small enough and cheap to decode passes byte for byte; every other one is encoded again,
without metadata:

- JPEG passes when it is sequential (not progressive, not arithmetic), 8 bit, upright, and ends where it says.
  Everything lossy, and everything large, becomes a JPEG like that.
- PNG passes when it is tiny (`lossless_px`), opaque, not interlaced and not animated. Tiny images of other
  lossless formats become such a PNG: at that size the blocks of a JPEG would be seen, and decoding is cheap.
  Large ones become JPEG, which decodes several times faster. The chunks of a PNG are checked here, since
  Pillow decodes over wrong checksums and unfinished data.
"""

import hashlib
import io
import zlib
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from ingest.config import IngestConfig
from ingest.decode_pool import Prepared
from stream.errors import BadRecord
from stream.images.decode import REASONS as DECODE_REASONS
from stream.images.decode import decode_image
from stream.images.jpeg import BASELINE, END_OF_IMAGE, START_OF_FRAME, segments
from stream.images.orientation import orientation_of
from stream.images.png_chunks import chunks
from stream.record import UNKNOWN_TYPE, media_type_of
from stream.tar import LABEL_REASONS, TAR_REASONS

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
    # `verify` of Pillow inflates nothing, and refuses sound pixels: without an end chunk, beside a long text.
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


REASONS: Mapping[str, str] = {
    **DECODE_REASONS,
    # of an image
    "too_small": "the shorter side is below `min_side`",
    "too_elongated": "the longer side is more than `max_aspect` times the shorter one",
    "decode_timeout": "decoding took longer than `timeout_s`",
    "decoder_crashed": "the decoder brought its process down",
    "duplicate": "the stream has the same content already",
    "above_topic_limit": "the record is larger than `max.message.bytes` of the Kafka topic",
    # of a file
    "unreadable": "the file cannot be read",
    "unreadable_folder": "the folder cannot be listed; what is in it is not known",
    "zip_damaged": "a zip, or a member of one, that cannot be read",
    "encrypted": "a member of a zip that is locked by a password",
    # of an archive, and of what is in it
    **TAR_REASONS,
}
"""Why something that was found is not written. Names are part of the interface; each is counted."""

LABEL_TROUBLES: Mapping[str, str] = LABEL_REASONS
"""What costs a label, but not the image."""

LOSSY = frozenset({"image/jpeg", "image/webp", "image/avif", "image/jp2", "image/heic", "image/jxl"})
SHARP_CHROMA_PX = 224
"""Images with a shorter side below this keep full colour resolution: crops enlarge them."""


def prepare(payload: bytes, config: IngestConfig) -> Prepared:
    """Make one image ready for the stream.

    Args:
        payload: the encoded image as found.
        config: what is refused and what is changed.

    Raises:
        BadRecord: with one of `REASONS`, whatever the bytes are.
    """
    if len(payload) > config.max_bytes:
        raise BadRecord("too_many_bytes", f"{len(payload)} bytes, the limit is {config.max_bytes}")
    media_type = media_type_of(payload) or UNKNOWN_TYPE
    image = decode_image(payload, max_pixels=config.max_pixels)
    height, width = image.shape[1:]
    short, long = min(height, width), max(height, width)
    if short < config.min_side:
        raise BadRecord(
            "too_small", f"{width} x {height} pixels, the shorter side must have {config.min_side}"
        )
    if long > config.max_aspect * short:
        raise BadRecord("too_elongated", f"{width} x {height} pixels")
    if media_type == "image/png":
        check_png(payload, max_bytes=8 * config.max_pixels)  # Pillow lets wrong checksums pass
    fits = config.short_side == 0 or short <= config.short_side
    if config.reencode == "never" or (
        config.reencode == "auto" and fits and _passes(payload, media_type, image, config)
    ):
        stored, stored_type = payload, media_type
    else:
        scale = 1.0 if fits else config.short_side / short
        width, height = round(width * scale), round(height * scale)
        stored, stored_type = _encode(image, media_type, width, height, config)
    return Prepared(stored, hashlib.sha256(stored).hexdigest(), stored_type, width, height)


def _passes(payload: bytes, media_type: str, image: Tensor, config: IngestConfig) -> bool:
    if media_type == "image/jpeg":
        return is_plain_jpeg(payload)
    pixels = image.shape[1] * image.shape[2]
    return media_type == "image/png" and pixels <= config.lossless_px and is_plain_png(payload)


def _encode(
    image: Tensor, media_type: str, width: int, height: int, config: IngestConfig
) -> tuple[bytes, str]:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    if media_type not in LOSSY and width * height <= config.lossless_px:
        picture.save(out, "PNG")
        return out.getvalue(), "image/png"
    subsampling = "4:4:4" if min(width, height) < SHARP_CHROMA_PX else "4:2:0"
    picture.save(out, "JPEG", quality=config.quality, subsampling=subsampling)
    return out.getvalue(), "image/jpeg"


def is_plain_jpeg(payload: bytes) -> bool:
    """Whether a JPEG is sequential with Huffman codes, 8 bit, grey or colour, upright, whole and alone."""
    plain = False
    for marker, _, body, stop in segments(payload):
        if marker in START_OF_FRAME:
            plain = (
                marker in BASELINE and stop >= body + 6 and payload[body] == 8 and payload[body + 5] in {1, 3}
            )
        if marker == END_OF_IMAGE:  # phones put videos and second images behind it
            return plain and stop == len(payload) and orientation_of(payload) == 1
    return False
