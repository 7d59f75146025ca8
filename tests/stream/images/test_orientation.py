"""One function reads how an image is turned, in the forms that exist, and it turns it."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from stream.images.decode import decode_image
from stream.images.exif import orientation_of_block
from stream.images.orientation import orientation_of, upright
from tests.stream.images.test_decode import drawing, encode

TIFF_ORDERS = {"II": "<", "MM": ">"}


def block(value: int, kind: str = "SHORT", order: str = "II") -> bytes:
    """A TIFF header and a directory with one entry."""
    mark = TIFF_ORDERS[order]
    field = struct.pack(mark + "I", value) if kind == "LONG" else struct.pack(mark + "HH", value, 0)
    head = order.encode() + struct.pack(mark + "HIH", 42, 8, 1)
    return head + struct.pack(mark + "HHI", 0x0112, {"SHORT": 3, "LONG": 4}[kind], 1) + field + bytes(4)


def xmp(value: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % value


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def jpeg(*contents: bytes) -> bytes:
    plain = encode(drawing(), "JPEG", quality=98, subsampling=0)
    return plain[:2] + b"".join(map(app1, contents)) + plain[2:]


def png(*parts: tuple[bytes, bytes], behind: bool = False) -> bytes:
    plain = encode(drawing(), "PNG")
    at = len(plain) - 12 if behind else 33
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return plain[:at] + made + plain[at:]


def webp(*parts: tuple[bytes, bytes]) -> bytes:
    body = b"VP8X" + struct.pack("<IB3x", 10, 12) + bytes((55, 0, 0, 39, 0, 0))
    body += encode(drawing(), "WEBP", lossless=True)[12:]
    for kind, content in parts:
        body += kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def raw_profile(value: int) -> bytes:
    content = (EXIF + block(value)).hex().encode()
    return b"\nexif\n%8d\n" % (len(content) // 2) + content + b"\n"


SIX = {
    "exif": jpeg(EXIF + block(6)),
    "exif, then xmp": jpeg(EXIF + block(6), XMP + xmp(1)),
    "xmp, then exif": jpeg(XMP + xmp(1), EXIF + block(6)),
    "three segments before it": jpeg(XMP + b"a", b"other", EXIF + b"broken", EXIF + block(6)),
    "of two the first": jpeg(EXIF + block(6), EXIF + block(3)),
    "long": jpeg(EXIF + block(6, "LONG")),
    "big-endian": jpeg(EXIF + block(6, order="MM")),
    "long, big-endian": jpeg(EXIF + block(6, "LONG", "MM")),
    "named twice": jpeg(EXIF + EXIF + block(6)),
    "xmp alone": jpeg(XMP + xmp(6)),
    "exif without it, xmp with it": jpeg(EXIF + block(99), XMP + xmp(6)),
    "png": png((b"eXIf", block(6))),
    "png, long, behind the pixels": png((b"eXIf", block(6, "LONG", "MM")), behind=True),
    "png with a name": png((b"eXIf", EXIF + block(6))),
    "png by ImageMagick": png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(6)))),
    "png, xmp": png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))),
    "png, xmp, compressed": png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6)))),
    "webp": webp((b"EXIF", block(6))),
    "webp with a name, long": webp((b"XMP ", b"odd"), (b"EXIF", EXIF + block(6, "LONG", "MM"))),
    "webp, xmp": webp((b"XMP ", xmp(6))),
}


@pytest.mark.parametrize("form", SIX)
def test_a_turned_photo_comes_out_upright_whatever_form_says_so(form: str) -> None:
    assert orientation_of(SIX[form]) == 6
    wanted = drawing().transpose(Image.Transpose.ROTATE_270)
    got = decode_image(SIX[form], max_pixels=10_000).permute(1, 2, 0).numpy()
    assert got.shape == (56, 40, 3)
    assert np.abs(got.astype(int) - np.asarray(wanted)).max() <= 8


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_formats_that_say_it_in_their_own_header_are_turned_once(kind: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    payload = encode(drawing(), kind, exif=exif)
    got = decode_image(payload, max_pixels=10_000).permute(1, 2, 0).numpy()
    turned = drawing()
    turned.getexif()[0x0112] = value
    wanted = ImageOps.exif_transpose(turned)
    assert got.shape == (wanted.height, wanted.width, 3)
    assert np.abs(got.astype(int) - np.asarray(wanted)).mean() < (1e-9 if kind == "TIFF" else 4)


@pytest.mark.parametrize("value", range(1, 9))
def test_the_turning_is_that_of_pillow(value: int) -> None:
    image = drawing(5, 7)
    image.getexif()[0x0112] = value
    wanted = np.asarray(ImageOps.exif_transpose(image))
    got = upright(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1), value)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(
    "payload",
    [
        jpeg(),
        jpeg(EXIF),
        jpeg(EXIF + b"broken-block"),
        jpeg(EXIF + block(0)),
        jpeg(EXIF + block(9)),
        jpeg(EXIF + block(70_000, "LONG")),
        jpeg(EXIF + block(6)[:-8]),
        jpeg(b"Exif" + block(6)),
        jpeg(EXIF + block(1), XMP + xmp(6)),
        jpeg() + jpeg(EXIF + block(6)),
        png((b"eXIf", b"")),
        png((b"zTXt", b"Raw profile type exif\0\0broken")),
        png((b"tEXt", b"Raw profile type exif\0\nexif\n 2\nno digits")),
        webp((b"EXIF", b"II")),
        encode(drawing(), "GIF"),
        b"",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0+" + bytes(4),
    ],
)
def test_what_says_nothing_that_can_be_used_is_upright(payload: bytes) -> None:
    assert orientation_of(payload) == 1


def test_a_count_that_is_a_lie_ends_with_the_block() -> None:
    lying = bytearray(block(6))
    lying[8:10] = b"\xff\xff"
    assert orientation_of_block(bytes(lying)) == 6
    assert orientation_of_block(b"II*\0\x08\0\0\0\xff\xff" + bytes(200)) == 0
