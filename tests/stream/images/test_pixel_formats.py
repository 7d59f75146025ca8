"""One known picture in every layout: it comes out right, or is refused by name; nothing wrong comes out."""

import io
import struct
import zlib
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ingest.config import IngestConfig
from ingest.transcode import prepare
from stream.errors import BadRecord
from stream.images.decode import REASONS, decode_image
from tests.stream.images.tiffs import (
    BLACK_IS_0,
    CMYK,
    FLOAT,
    PALETTE,
    RGB,
    SIGNED,
    UNSIGNED,
    WHITE_IS_0,
    YCBCR,
    Levels,
    samples,
    tiff,
)

HEIGHT, WIDTH = 33, 40
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT - 1, WIDTH - 1]).reshape(2, 1, 1)
COLOUR: Levels = np.stack([X, Y, (1 - X) * 0.8 + 0.1], axis=-1)
GREY: Levels = ((X + Y) / 2)[..., None]
ALPHA: Levels = (0.2 + 0.8 * Y)[..., None]
BLEND: Levels = COLOUR * ALPHA + 1 - ALPHA

# Content: photometric, levels, what must be seen, and tags. Unspecified further samples are no picture.
CONTENTS: dict[str, tuple[int, Levels, Levels, dict[int, list[int]]]] = {
    "grey": (BLACK_IS_0, GREY, GREY, {}),
    "grey, white is 0": (WHITE_IS_0, 1 - GREY, GREY, {}),
    "grey, alpha": (BLACK_IS_0, np.dstack([GREY, ALPHA]), GREY * ALPHA + 1 - ALPHA, {338: [2]}),
    "colour": (RGB, COLOUR, COLOUR, {}),
    "colour, alpha": (RGB, np.dstack([COLOUR, ALPHA]), BLEND, {338: [2]}),
    "colour, multiplied alpha": (RGB, np.dstack([COLOUR * ALPHA, ALPHA]), BLEND, {338: [1]}),
    "colour, more": (RGB, np.dstack([COLOUR, Y, X]), COLOUR, {338: [0, 0]}),
    "cmyk": (CMYK, np.dstack([1 - COLOUR, 0 * X]), COLOUR, {332: [1]}),
}
TYPES = [
    *((bits, UNSIGNED) for bits in (1, 2, 4, 8, 10, 12, 14, 16, 32)),
    *((bits, SIGNED) for bits in (8, 16, 32)),
    *((bits, FLOAT) for bits in (16, 32, 64)),
]
DEEP = {(8, SIGNED), *product((16, 32), (UNSIGNED, SIGNED, FLOAT))}


def levels_of(payload: bytes) -> NDArray[np.float64]:
    decoded = decode_image(payload, max_pixels=10**6).permute(1, 2, 0).numpy()
    return decoded.astype(np.float64) / 255


def refusal(payload: bytes) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        decode_image(payload, max_pixels=10**6)
    return caught.value


def levels_or_refusal(payload: bytes) -> NDArray[np.float64] | BadRecord:
    try:
        return levels_of(payload)
    except BadRecord as bad:
        return bad


def assert_picture(payload: bytes, wanted: Levels, about: object = "") -> None:
    found = levels_of(payload)
    assert found.shape == (*wanted.shape[:2], 3), about
    assert np.abs(found - wanted).max() <= 3 / 255, about  # alpha and colour are each rounded


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def png(
    values: NDArray[Any], colour_type: int, *chunks: tuple[bytes, bytes], bits: int | None = None
) -> bytes:
    """A PNG of [H, W, n] uint8 or uint16 samples, with chunks before its pixels."""
    bits = bits or 8 * values.dtype.itemsize
    rows = values.astype(">u2" if bits == 16 else "u1")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


# TIFF -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_tiff_layout_is_right_or_refused_by_name(order: str, content: str) -> None:
    photometric, picture, wanted, more = CONTENTS[content]
    right = set()
    for (bits, kind), planar, deflate in product(TYPES, [False, True], [False, True]):
        if planar and picture.shape[2] == 1:
            continue
        values = samples(picture, bits, kind)
        payload = tiff(
            values, photometric, bits, kind, order=order, planar=planar, rows=10, deflate=deflate, more=more
        )
        about = (content, order, bits, kind, planar, deflate)
        # What so few levels can show: the samples themselves.
        top = 2**bits - 1 if kind == UNSIGNED else 1
        exact = np.abs(values / top - picture).max() if kind == UNSIGNED else 0.0
        found = levels_or_refusal(payload)
        if isinstance(found, BadRecord):
            assert found.reason == "unsupported", (about, found)
            assert f"{bits}-bit" in str(found), (about, found)
            assert ("plane" in str(found)) == planar, (about, found)
        else:
            assert found.shape == (HEIGHT, WIDTH, 3), about
            assert np.abs(found - wanted).max() <= exact + 3 / 255, about
            right.add((bits, kind))
    assert DEEP | {(8, UNSIGNED)} <= right


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_thirty_two_bits_do_not_wrap(order: str, deflate: bool) -> None:
    values = np.array([[[0], [2**31 - 1], [2**31], [2**32 - 1]]], dtype=np.uint64)
    payload = tiff(values, BLACK_IS_0, 32, order=order, deflate=deflate)
    assert (levels_of(payload)[0, :, 0] * 255).round().tolist() == [0, 127, 128, 255]


def test_a_turned_deep_tiff_comes_out_upright() -> None:
    turned = np.rot90(COLOUR)  # a viewer turns it to the right
    payload = tiff(samples(turned, 16, UNSIGNED), RGB, 16, planar=True, more={274: [6]})
    assert_picture(payload, COLOUR)


def test_colour_maps_of_eight_bits_are_no_black_page() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    ramp = list(range(256))
    for scale in (1, 257):
        payload = tiff(values, PALETTE, 8, more={320: [scale * level for level in ramp * 3]})
        assert np.array_equal(levels_of(payload)[..., 0] * 255, values[..., 0])


def test_inks_and_chroma_that_are_not_what_they_seem_are_refused() -> None:
    inks = tiff(samples(np.dstack([COLOUR, Y]), 8, UNSIGNED), CMYK, 8, more={332: [2]})
    assert refusal(inks).reason == "unsupported"
    assert "separated" in str(refusal(inks))
    # Chroma of half the resolution, stored without compression: 6 bytes for 4 pixels.
    payload = tiff(np.full((16, 16, 3), 128, np.uint8), YCBCR, 8, more={530: [2, 2], 279: [16 * 16 * 3 // 2]})
    assert "YCbCr" in str(refusal(payload))
    assert (
        np.abs(levels_of(encode(Image.new("YCbCr", (8, 8), (128, 128, 128)), "TIFF")) * 255 - 128).max() < 2
    )


def test_the_limit_of_pixels_holds_for_tiffs_that_are_read_in_planes() -> None:
    payload = tiff(samples(COLOUR, 16, SIGNED), RGB, 16, SIGNED)
    assert decode_image(payload, max_pixels=HEIGHT * WIDTH).shape == (3, HEIGHT, WIDTH)
    with pytest.raises(BadRecord, match="too_large"):
        decode_image(payload, max_pixels=HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("planar", [False, True])
def test_a_cut_deep_tiff_is_refused(planar: bool) -> None:
    payload = bytearray(tiff(samples(COLOUR, 32, FLOAT), RGB, 32, FLOAT, planar=planar, rows=8))
    place = payload.index(struct.pack("<HHI", 273, 4, (3 if planar else 1) * 5)) + 8
    table = struct.unpack_from("<I", payload, place)[0]
    struct.pack_into("<I", payload, table + 4 * ((15 if planar else 5) - 1), len(payload) - 20)
    assert refusal(bytes(payload)).reason in {"truncated", "undecodable"}


@pytest.mark.parametrize("planar", [False, True])
def test_a_damaged_deep_tiff_is_an_image_or_a_bad_record(planar: bool) -> None:
    whole = tiff(samples(COLOUR[:8, :8], 16, UNSIGNED), RGB, 16, planar=planar, rows=3, deflate=True)
    draws = np.random.default_rng(0)
    for _ in range(300):
        payload = bytearray(whole)
        for place in draws.integers(len(payload) // 2, len(payload), 3):  # mostly the directory
            payload[place] = draws.integers(256)
        found = levels_or_refusal(bytes(payload))
        assert not isinstance(found, BadRecord) or found.reason in REASONS


# The range of deep values -----------------------------------------------------------------------------------


def grey_png(values: NDArray[np.uint16]) -> bytes:
    return encode(Image.fromarray(values), "PNG")


def grey_tiff(values: NDArray[np.uint16]) -> bytes:
    return tiff(values[..., None], BLACK_IS_0, 16)


def big_endian_tiff(values: NDArray[np.uint16]) -> bytes:
    return tiff(values[..., None], BLACK_IS_0, 16, order=">")


def pgm(values: NDArray[np.uint16]) -> bytes:
    return b"P5\n%d %d\n65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


def jpeg2000(values: NDArray[np.uint16]) -> bytes:
    return encode(Image.fromarray(values), "JPEG2000", irreversible=False)


def colour_png(values: NDArray[np.uint16]) -> bytes:
    return png(np.repeat(values[..., None], 3, axis=2), 2)


def alpha_png(values: NDArray[np.uint16]) -> bytes:
    return png(np.dstack([values, values, values, np.full_like(values, 65535)]), 6)


def grey_alpha_png(values: NDArray[np.uint16]) -> bytes:
    return png(np.dstack([values, np.full_like(values, values.max())]), 4)


def ppm(values: NDArray[np.uint16]) -> bytes:
    return b"P6\n%d %d\n65535\n" % values.shape[::-1] + np.repeat(values, 3).astype(">u2").tobytes()


def colour_tiff(values: NDArray[np.uint16]) -> bytes:
    return tiff(np.repeat(values[..., None], 3, axis=2), RGB, 16)


@pytest.mark.parametrize("bits", [4, 9, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "write",
    [
        grey_png,
        grey_tiff,
        big_endian_tiff,
        pgm,
        jpeg2000,
        colour_png,
        alpha_png,
        grey_alpha_png,
        ppm,
        colour_tiff,
    ],
)
def test_few_bits_in_sixteen_look_like_the_eight_bit_picture(
    write: Callable[[NDArray[np.uint16]], bytes], bits: int
) -> None:
    values = np.rint(GREY[..., 0] * (2**bits - 1)).astype(np.uint16)
    assert np.abs(levels_of(write(values)) - (values / (2**bits - 1))[..., None]).max() <= 1 / 255


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_stated_number_of_bits_changes_nothing_wherever_they_lie(bits: int) -> None:
    right = np.rint(GREY * (2**bits - 1)).astype(np.uint16)
    for values in (right, right << (16 - bits)):
        assert_picture(png(values, 0, (b"sBIT", bytes([bits]))), GREY)


def test_a_dark_photograph_of_sixteen_bits_stays_as_dark_as_its_eight_bit_copy() -> None:
    eight = np.rint(GREY[..., 0] * 140).astype(np.uint16)  # the highest bit is in use
    assert np.array_equal(levels_of(grey_png(eight * 257))[..., 0] * 255, eight)
    floats = np.array([[0.0, 0.25, 0.6]], dtype=np.float32)
    assert (levels_of(encode(Image.fromarray(floats), "TIFF"))[0, :, 0] * 255).tolist() == [0, 64, 153]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([-1000, 0, 3000], np.int32), [0, 64, 255]),  # below zero: from the smallest to the largest
        (np.array([32_000, 32_100, 32_255], np.int32), [0, 100, 255]),  # less than an eighth of 15 bits
        (np.array([0, 2000, 4095], np.int32), [0, 125, 255]),  # 12 bits
        (np.array([7, 7, 7], np.int32), [255, 255, 255]),  # even: as bright as its bits say
        (np.array([0, 0, 0], np.int32), [0, 0, 0]),
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([-0.5, 0.0, 0.5], np.float32), [0, 128, 255]),
        (np.array([0.0, 100.0, 256.0], np.float32), [0, 100, 255]),
        (np.array([np.nan, 0.0, np.inf, 1.0], np.float32), [0, 0, 0, 255]),
        (np.array([0.0, 3e38], np.float32), [0, 225]),
        (np.array([0.0, 1e-40], np.float32), [0, 139]),
    ],
)
def test_black_and_white_of_deep_values(values: NDArray[Any], wanted: list[int]) -> None:
    found = levels_of(encode(Image.fromarray(values[None]), "TIFF"))[0, :, 0] * 255
    assert found.round().tolist() == wanted


def test_even_images_of_different_brightness_stay_different() -> None:
    seen = {
        levels_of(grey_png(np.full((4, 4), value, np.uint16))).mean() for value in (9_000, 12_000, 15_000)
    }
    assert len(seen) == 3


def test_deep_colours_of_jpeg2000_are_right_or_refused() -> None:
    # Pillow writes colours of 8 bits. Where 9 bits are stated instead, the same numbers lie from 128 to 383.
    def stated(levels: Levels, bits: int) -> bytes:
        image = Image.fromarray(np.rint(levels * 255).astype(np.uint8))
        payload = bytearray(encode(image, "JPEG2000", irreversible=False, mct=0))
        place = payload.index(b"\xff\x4f\xff\x51") + 42
        assert payload[place : place + 9 : 3] == b"\x07\x07\x07"
        payload[place : place + 9 : 3] = bytes([bits - 1] * 3)
        return bytes(payload)

    assert_picture(stated(COLOUR, 9), (COLOUR * 255 + 128) / 511)
    # Half of the range or less: the bits that would show it are gone.
    assert "12-bit" in str(refusal(stated(COLOUR / 3, 12)))


# Transparency -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TGA", "DDS", "WEBP", "TIFF"])
def test_alpha_that_is_zero_everywhere_is_left_out(kind: str) -> None:
    eight = np.rint(COLOUR * 255).astype(np.uint8)[:32]
    unused = Image.fromarray(np.dstack([eight, np.zeros((32, WIDTH), np.uint8)]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert_picture(encode(unused, kind, **options), eight / 255)


def test_different_pictures_under_unused_alpha_stay_different() -> None:
    digests = set()
    for eight in (COLOUR, COLOUR[::-1], COLOUR[:, ::-1]):
        unused = np.dstack([np.rint(eight * 255).astype(np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)])
        digests.add(prepare(encode(Image.fromarray(unused), "TGA"), IngestConfig(min_side=8)).sha256)
    assert len(digests) == 3


@pytest.mark.parametrize(("bits", "planar", "extra"), list(product((8, 16), (False, True), (1, 2))))
def test_unused_alpha_of_a_tiff_is_left_out(bits: int, planar: bool, extra: int) -> None:
    picture = samples(np.dstack([COLOUR, 0 * X]), bits, UNSIGNED)
    payload = tiff(picture, RGB, bits, planar=planar, more={338: [extra]})
    assert_picture(payload, COLOUR)


def test_transparency_of_more_entries_than_the_palette_is_left_out() -> None:
    indices = (np.arange(12).reshape(3, 4, 1) % 4).astype(np.uint8)
    palette = bytes([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    colours = np.frombuffer(palette, np.uint8).reshape(4, 3)[indices[..., 0]]
    for entries in (b"\0" * 5, b"\0" * 256, b"\0" + b"\xff" * 4):
        found = levels_of(png(indices, 3, (b"PLTE", palette), (b"tRNS", entries))) * 255
        assert np.array_equal(found, colours)
    found = levels_of(png(indices, 3, (b"PLTE", palette), (b"tRNS", b"\0"))) * 255
    assert (found[indices[..., 0] == 0] == 255).all()
    assert np.array_equal(found[indices[..., 0] != 0], colours[indices[..., 0] != 0])


def test_a_transparent_deep_colour_is_white() -> None:
    values = np.array([[[4000, 10, 20], [4000, 10, 21], [0, 4095, 0]]], np.uint16)
    found = levels_of(png(values, 2, (b"tRNS", struct.pack(">3H", 4000, 10, 20)))) * 255
    assert found.round().tolist() == [[[255, 255, 255], [249, 1, 1], [0, 255, 0]]]


# Colours ----------------------------------------------------------------------------------------------------


def ink_profile() -> bytes:
    """An ICC profile of four inks for which any ink but black gives the same middle grey."""
    grid = [(0, 0) if black else ((50, 0) if ink else (100, 0)) for ink, black in product(range(8), range(2))]
    table = b"".join(bytes([round(lightness * 2.55), 128, 128]) for lightness, _ in grid)
    identity = struct.pack(">9i", *(65536 * int(i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0none\0"
    text += b"\0" * (-len(text) % 4)
    lut += b"\0" * (-len(lut) % 4)
    parts = {b"A2B0": lut, b"wtpt": white, b"cprt": text}
    at = 128 + 4 + 12 * len(parts)
    tags, body = struct.pack(">I", len(parts)), b""
    for name, part in parts.items():
        tags += name + struct.pack(">II", at + len(body), len(part))
        body += part
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + body


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_the_profile_in_the_file(kind: str) -> None:
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    cases = {(0, 0, 0, 0): 255, (255, 0, 0, 0): 119, (255, 255, 0, 0): 119, (0, 0, 0, 255): 0}
    for inks, grey in cases.items():  # L* of 50 is 119 in sRGB
        payload = encode(Image.new("CMYK", (16, 16), inks), kind, icc_profile=ink_profile(), **options)
        assert np.abs(levels_of(payload) * 255 - grey).max() <= 3


def test_deep_cmyk_planes_are_converted_by_the_profile_too() -> None:
    values = np.zeros((4, 4, 4), np.uint16)
    values[..., 0] = 65535
    payload = bytearray(tiff(values, CMYK, 16, planar=True, more={34675: [0, 0, 0]}))
    profile = ink_profile()
    entry = payload.index(struct.pack("<HHI", 34675, 3, 3))
    payload[entry : entry + 12] = struct.pack("<HHII", 34675, 7, len(profile), len(payload))
    assert np.abs(levels_of(bytes(payload) + profile) * 255 - 119).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("profile", [b"", b"no profile", b"\0" * 400])
def test_cmyk_without_a_sound_profile_keeps_its_colours(kind: str, profile: bytes) -> None:
    cases = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 255, 0): (0, 255, 0), (0, 0, 0, 0): (255, 255, 255)}
    for inks, colour in cases.items():
        payload = encode(Image.new("CMYK", (16, 16), inks), kind, icc_profile=profile)
        assert np.abs(levels_of(payload) * 255 - colour).max() <= 4


def test_a_set_bit_of_xbm_is_black() -> None:
    text = b"#define i_width 8\n#define i_height 1\nstatic char i_bits[] = {\n0x05};\n"
    assert (levels_of(text)[0, :, 0] * 255).tolist() == [0, 255, 0, 255, 255, 255, 255, 255]


@pytest.mark.parametrize(("kind", "pixel"), [(1, bytes([9, 30, 20, 10])), (3, bytes([9, 10, 20, 30]))])
def test_the_first_byte_of_a_sun_pixel_is_not_used(kind: int, pixel: bytes) -> None:
    header = struct.pack(">8I", 0x59A66A95, 4, 2, 32, 4 * 2 * 4, kind, 0, 0)
    found = levels_of(header + pixel * 8) * 255
    assert (found == [10, 20, 30]).all()
