"""Nothing that no pixel depends on refuses an image, or changes it."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stream.images.decode import decode_image
from stream.images.metadata import without_metadata
from tests.stream.images.test_decode import drawing, encode
from tests.stream.images.test_orientation import EXIF, XMP, block, jpeg, png, webp

BOMB = zlib.compress(bytes(80 << 20))
BROKEN = {
    "empty": b"",
    "two zeros": b"\0\0",
    "no tiff": EXIF + b"broken-block",
    "named twice": EXIF + EXIF + b"II*\0\x08\0\0\0\0\0",
    "far directory": b"MM\0*\xff\xff\xff\xff",
    "lying count": b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01\0\0\0",
    "far value": b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f" + bytes(4),
    "far camera data": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\xff\xff\xff\x7f" + bytes(4),
    "key and bomb": b"key\0\0" + BOMB,
    "xmp and bomb": b"XML:com.adobe.xmp\0\x01\0\0\0" + BOMB,
    "unknown compression": b"key\0\x09" + zlib.compress(b"text"),
}
PNG_KINDS = (
    "iCCP", "tEXt", "zTXt", "iTXt", "eXIf", "pHYs", "tIME", "gAMA", "cHRM", "sRGB", "bKGD", "hIST", "sPLT",
    "acTL", "fcTL", "fdAT", "sBIT", "cICP", "xxXx",
)  # fmt: skip


def pixels(payload: bytes) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = decode_image(payload, max_pixels=10_000).numpy()
    return image


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("behind", [False, True])
def test_no_ancillary_chunk_of_a_png_costs_the_image(content: str, behind: bool) -> None:
    wanted = pixels(png())
    for kind in PNG_KINDS:
        if kind != "sBIT":
            got = pixels(png((kind.encode(), BROKEN[content]), behind=behind))
            assert np.array_equal(got, wanted), kind


def test_no_checksum_of_an_ancillary_chunk_costs_the_image() -> None:
    for kind in PNG_KINDS:
        payload = bytearray(png((kind.encode(), b"key\0value")))
        payload[33 + 8 + 9] ^= 1
        assert np.array_equal(pixels(bytes(payload)), pixels(png())), kind


def test_a_png_that_ends_inside_a_text_behind_its_pixels_is_whole() -> None:
    payload = png((b"tEXt", b"key\0" + b"value" * 99), behind=True)
    assert np.array_equal(pixels(payload[:-200]), pixels(png()))
    assert np.array_equal(pixels(png()[:-3]), pixels(png()))


def test_eighty_texts_of_a_megabyte_cost_nothing() -> None:
    text = b"key\0\0" + zlib.compress(bytes(1 << 20))
    assert np.array_equal(pixels(png(*[(b"zTXt", text)] * 80)), pixels(png()))


@pytest.mark.parametrize("content", BROKEN)
def test_no_chunk_beside_the_pixels_of_a_webp_costs_the_image(content: str) -> None:
    for kind in (b"EXIF", b"XMP ", b"ICCP", b"abcd"):
        assert np.array_equal(pixels(webp((kind, BROKEN[content]))), pixels(webp())), kind


def segments_beside() -> Iterator[tuple[int, bytes]]:
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE):
        for content in BROKEN.values():
            yield marker, content[:60_000]
    yield 0xE0, b"JFXX\0\x10"
    yield 0xE0, b"JFIF\0"
    yield 0xE1, XMP + b"\xff" * 99
    yield 0xE2, b"ICC_PROFILE\0"
    yield 0xE2, b"ICC_PROFILE\0\x02\x01" + b"junk" * 30
    yield 0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"
    yield 0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\xff\xff\xff\xff"
    yield 0xEE, b"Adobe"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_no_segment_of_a_jpeg_beside_its_pixels_costs_the_image(mode: str) -> None:
    plain = encode(drawing().convert(mode), "JPEG")
    wanted = pixels(plain)
    for marker, content in segments_beside():
        segment = bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content
        assert np.array_equal(pixels(plain[:2] + segment + plain[2:]), wanted), (hex(marker), content[:40])


def tiff(tag: int, kind: int, count: int, value: int) -> bytes:
    """A TIFF of 5 x 3 pixels with one entry more than it needs."""
    raw = bytes(range(45))
    entries = [
        (256, 4, 1, 5), (257, 4, 1, 3), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 0),
        (277, 3, 1, 3), (278, 4, 1, 3), (279, 4, 1, len(raw)), (tag, kind, count, value),
    ]  # fmt: skip
    bits = 8 + 2 + 12 * len(entries) + 4
    places = {258: bits, 273: bits + 6}
    body = b"".join(struct.pack("<HHII", t, k, n, places.get(t, v)) for t, k, n, v in sorted(entries))
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + body
        + bytes(4)
        + struct.pack("<HHH", 8, 8, 8)
        + raw
    )


@pytest.mark.parametrize(
    "tag", [254, 269, 270, 271, 282, 283, 296, 305, 306, 315, 700, 33723, 34377, 34665, 34853, 65_000]
)
def test_no_tag_of_a_tiff_that_no_pixel_depends_on_costs_the_image(tag: int) -> None:
    wanted = np.arange(45, dtype=np.uint8).reshape(3, 5, 3).transpose(2, 0, 1)
    for kind in (1, 2, 3, 4, 5, 7, 9, 12, 13, 99):
        for count, value in ((0, 0), (1, 0), (1, 0xFFFFFFFF), (9, 0xFFFFFFFF), (0xFFFFFFFF, 8), (100_000, 8)):
            assert np.array_equal(pixels(tiff(tag, kind, count, value)), wanted), (kind, count, value)


def test_a_broken_exif_block_of_an_avif_costs_neither_the_image_nor_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker of cameras"
    sound = encode(drawing(), "AVIF", exif=exif)
    assert sound.count(b"MM\0*") == 1
    broken = sound.replace(b"MM\0*", b"junk")
    assert pixels(sound).shape == (3, 56, 40)
    assert np.array_equal(pixels(broken), pixels(sound))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF"])
def test_what_lies_behind_an_image_plays_no_part(kind: str) -> None:
    payload = encode(drawing(), kind)
    assert np.array_equal(pixels(payload + b"\xff\xda" * 500_000), pixels(payload))


def test_without_its_metadata_an_image_has_the_pixels_that_pillow_sees_in_both() -> None:
    for payload in (
        jpeg(EXIF + block(1), XMP + b"text"),
        png((b"tEXt", b"a\0b"), (b"tRNS", struct.pack(">HHH", 1, 2, 3))),
        encode(
            drawing(), "TIFF", compression="tiff_lzw", dpi=(3, 4), save_all=True, append_images=[drawing()]
        ),
    ):
        bare = without_metadata(payload)
        assert bare != payload
        seen = [np.asarray(Image.open(io.BytesIO(one)).convert("RGBA")) for one in (payload, bare)]
        assert np.array_equal(seen[0], seen[1])
