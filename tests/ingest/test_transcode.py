import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ingest.config import IngestConfig
from ingest.decode_pool import Prepared
from ingest.transcode import prepare
from stream.errors import BadRecord
from tests.ingest.made import encoded, pixels

CONFIG = IngestConfig()
ORIENTATION = 0x0112


def opened(prepared: Prepared) -> Image.Image:
    image = Image.open(io.BytesIO(prepared.payload))
    assert image.size == (prepared.width, prepared.height)
    assert prepared.sha256 == hashlib.sha256(prepared.payload).hexdigest()
    return image


def reason(payload: bytes, config: IngestConfig = CONFIG) -> str:
    with pytest.raises(BadRecord) as caught:
        prepare(payload, config)
    return caught.value.reason


def with_orientation(payload: bytes, value: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    out = io.BytesIO()
    Image.open(io.BytesIO(payload)).save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        encoded(1),
        encoded(1, mode="L"),
        encoded(1, quality=95, subsampling="4:4:4", optimize=True),
        encoded(1, width=900, height=384),
        with_orientation(encoded(1), 1),
        with_orientation(encoded(1), 99),
        encoded(1, "PNG"),
        encoded(1, "PNG", mode="L"),
        encoded(1, "PNG", mode="P"),
    ],
)
def test_sound_small_images_that_decode_cheaply_pass_byte_for_byte(payload: bytes) -> None:
    prepared = prepare(payload, CONFIG)
    assert prepared.payload == payload
    opened(prepared)


@pytest.mark.parametrize(
    "payload",
    [
        encoded(1, progressive=True),
        encoded(1, mode="CMYK"),
        encoded(1) + b"a video that a phone put behind the picture",
        encoded(1) + encoded(2),
        encoded(1, "WEBP"),
        encoded(1, "PNG", width=400, height=300),
        encoded(1, "BMP", width=400, height=300),
    ],
)
def test_other_images_become_sequential_jpegs(payload: bytes) -> None:
    prepared = prepare(payload, CONFIG)
    assert prepared.payload != payload
    assert prepared.media_type == "image/jpeg"
    image = opened(prepared)
    assert image.mode == "RGB"
    assert "progressive" not in image.info
    again = prepare(prepared.payload, CONFIG)
    assert again.payload == prepared.payload


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM"])
def test_tiny_lossless_images_stay_lossless(kind: str) -> None:
    prepared = prepare(encoded(1, kind), CONFIG)
    assert prepared.media_type == "image/png"
    if kind != "GIF":
        assert np.array_equal(np.asarray(opened(prepared)), pixels(1))
    assert prepare(prepared.payload, CONFIG).payload == prepared.payload


def test_transparent_and_deep_pngs_are_made_plain() -> None:
    clear = Image.fromarray(pixels(1)).convert("RGBA")
    clear.putalpha(0)
    clear.putpixel((0, 0), (0, 0, 0, 255))
    out = io.BytesIO()
    clear.save(out, "PNG")
    seen = np.asarray(opened(prepare(out.getvalue(), CONFIG)))
    assert set(np.unique(seen[0, 0])) == {0}
    assert set(np.unique(seen[1:])) == {255}
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(out, "PNG")
    image = opened(prepare(out.getvalue(), CONFIG))
    assert image.mode in {"L", "RGB"}


@pytest.mark.parametrize("value", range(2, 9))
def test_images_are_made_upright(value: int) -> None:
    turned = with_orientation(encoded(3, width=80, height=40), value)
    prepared = prepare(turned, CONFIG)
    image = opened(prepared)
    assert image.getexif().get(ORIENTATION, 1) == 1
    assert image.size == ((40, 80) if value >= 5 else (80, 40))


@pytest.mark.parametrize("value", range(2, 9))
def test_an_image_that_is_stored_as_found_is_never_one_that_other_readers_turn(value: int) -> None:
    """XMP before EXIF, and the value as LONG: forms that torchvision's decoder does not see."""
    plain = encoded(3, width=80, height=40)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIII", 8, 1, ORIENTATION, 4, 1, value, 0)
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in (xmp, exif))
    image = opened(prepare(plain[:2] + segments + plain[2:], CONFIG))
    assert image.size == ((40, 80) if value >= 5 else (80, 40))
    assert image.getexif().get(ORIENTATION, 1) == 1


def test_half_a_jpeg_is_refused_whatever_is_done_with_its_bytes() -> None:
    whole = encoded(1, width=200, height=160)
    half = whole[: len(whole) // 2] + b"\xff\xd9"
    for reencode in ("auto", "always", "never"):
        assert reason(half, IngestConfig(reencode=reencode)) == "truncated"


def test_a_jpeg_without_its_end_marker_gets_one() -> None:
    whole = encoded(1)
    stored = prepare(whole[:-2], CONFIG)
    assert stored.payload.endswith(b"\xff\xd9")
    opened(stored).load()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"zTXt", b"key\0\0no zlib"),
        (b"iCCP", b"key\0\x09"),
        (b"zTXt", b"key\0\0" + zlib.compress(bytes(99 << 20))),
    ],
)
def test_a_png_whose_texts_other_readers_refuse_is_encoded_again(kind: bytes, content: bytes) -> None:
    plain = encoded(1, "PNG")
    made = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    stored = prepare(plain[:33] + made + plain[33:], CONFIG)
    assert stored.media_type == "image/png"
    assert np.array_equal(np.asarray(opened(stored).convert("RGB")), pixels(1))


def test_the_shorter_side_is_made_short_and_the_shape_stays() -> None:
    image = opened(prepare(encoded(1, width=1000, height=500), IngestConfig(short_side=100)))
    assert image.size == (200, 100)
    wanted = Image.fromarray(pixels(1, 1000, 500)).resize((200, 100), Image.Resampling.LANCZOS)
    difference = np.asarray(image, np.float64) - np.asarray(wanted, np.float64)
    assert np.sqrt((difference**2).mean()) < 6  # of 255: JPEG at quality 90


def test_zero_keeps_every_size() -> None:
    payload = encoded(1, width=1000, height=500)
    assert prepare(payload, IngestConfig(short_side=0)).payload == payload


def test_never_keeps_the_bytes_and_always_changes_them() -> None:
    payload = encoded(1, "PNG", width=900, height=500)
    assert prepare(payload, IngestConfig(reencode="never")).payload == payload
    small = encoded(1)
    assert prepare(small, IngestConfig(reencode="always")).payload != small


def test_quality_is_that_of_the_configuration() -> None:
    payload = encoded(1, "BMP", width=300, height=300)
    sizes = [len(prepare(payload, IngestConfig(quality=quality)).payload) for quality in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_the_same_image_always_gives_the_same_bytes() -> None:
    payload = encoded(1, "PNG", width=900, height=500)
    assert prepare(payload, CONFIG) == prepare(payload, CONFIG)


def test_images_out_of_bounds_are_refused_with_a_reason() -> None:
    assert reason(b"") == "empty"
    assert reason(b"<html>404</html>") == "not_an_image"
    assert reason(encoded(1, width=40, height=7)) == "too_small"
    assert reason(encoded(1, width=400, height=10)) == "too_elongated"
    assert reason(encoded(1), IngestConfig(max_pixels=1000)) == "too_large"
    assert reason(encoded(1), IngestConfig(max_bytes=100)) == "too_many_bytes"
    assert reason(encoded(1, width=200, height=200)[:-400]) == "truncated"


def chunk(kind: bytes, body: bytes, flip: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ flip)


def png(data: bytes, *, flip: int = 0, end: bool = True) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data, flip) + (chunk(b"IEND", b"") if end else b"")


ROWS = b"".join(b"\0" + bytes(range(16)) for _ in range(16))


def test_a_png_with_a_wrong_checksum_or_unfinished_pixels_is_refused() -> None:
    whole = zlib.compress(ROWS)
    assert prepare(png(whole), CONFIG).media_type == "image/png"
    assert reason(png(whole, flip=1)) == "undecodable"
    assert reason(png(whole[:-6])) in {"truncated", "undecodable"}


def test_a_png_whose_pixels_inflate_beyond_the_limit_is_refused() -> None:
    bomb = zlib.compress(ROWS + bytes(3_000_000))
    assert reason(png(bomb), IngestConfig(max_pixels=16 * 16)) in {"too_large", "undecodable"}
