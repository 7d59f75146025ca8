"""How the samples of a TIFF are laid out, and how those are read that Pillow reads wrong or not at all.

Pillow has a table of layouts. Some of its entries leave out a fact (which end of the range is white, that
values are signed, that planes hold 16 bits), and many layouts are missing. Nothing is decompressed here:
another directory is written behind the file, under which Pillow takes the same samples as plain grey planes,
and the facts are applied to these. A layout that cannot be read so either is refused, by its name.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from stream.errors import BadRecord
from stream.images.pixel_formats import cmyk_to_rgb, from_channels, over_white

# Tags of TIFF 6.0.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 284, 317, 322, 323, 324, 325
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING, _PROFILE = 332, 338, 339, 530, 34675
_SHORT = frozenset(
    {_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR, _PREDICTOR, _SAMPLE_FORMAT}
)
_COPIED = (_HEIGHT, _COMPRESSION, _FILL_ORDER, _ROWS_PER_STRIP, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT)
_LISTS = (_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES)

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_KINDS: Mapping[int, str] = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "floating-point"}
_WHITE_IS_0, _BLACK_IS_0, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6
_COLOURS: Mapping[int, tuple[str, int]] = {
    _WHITE_IS_0: ("grey (white is 0)", 1),
    _BLACK_IS_0: ("grey", 1),
    _RGB: ("RGB", 3),
    3: ("palette", 1),
    _CMYK: ("separated", 4),
    _YCBCR: ("YCbCr", 3),
    8: ("CIE L*a*b*", 3),
    9: ("ICC L*a*b*", 3),
    32803: ("colour filter array", 1),
    34892: ("linear raw", 3),
}
_MULTIPLIED_ALPHA, _ALPHA = 1, 2
_UNCOMPRESSED, _WHOLE_JPEG = 1, (6, 7)
_MOST_SAMPLES = 16

# Bits and kind of the samples that are read here: what Pillow is told that they are, and what they are.
_READ_AS: Mapping[tuple[int, int], tuple[int, str]] = {
    (8, _UNSIGNED): (_UNSIGNED, "u1"),
    (8, _SIGNED): (_UNSIGNED, "i1"),
    (16, _UNSIGNED): (_UNSIGNED, "u2"),
    (16, _SIGNED): (_UNSIGNED, "i2"),
    (16, _FLOAT): (_UNSIGNED, "f2"),
    (32, _UNSIGNED): (_SIGNED, "u4"),
    (32, _SIGNED): (_SIGNED, "i4"),
    (32, _FLOAT): (_FLOAT, "f4"),
}


@dataclass(frozen=True)
class TiffLayout:
    """What the first directory of a TIFF says of its samples."""

    width: int
    height: int
    bits: tuple[int, ...]
    kinds: tuple[int, ...]
    photometric: int
    samples: int
    extra: tuple[int, ...]
    planar: bool
    compression: int
    predictor: int
    fill_order: int
    tags: Mapping[int, Any]

    def __str__(self) -> str:
        bits = "/".join(str(count) for count in dict.fromkeys(self.bits))
        kinds = "/".join(_KINDS.get(kind, f"format {kind}") for kind in dict.fromkeys(self.kinds))
        colours, _ = _COLOURS.get(self.photometric, (f"photometric {self.photometric}", 0))
        planes = ", each in a plane of its own" if self.planar and self.samples > 1 else ""
        tiles = ", tiled" if _TILE_OFFSETS in self.tags else ""
        turned = ", bits from the right" if self.fill_order != 1 else ""
        return (
            f"TIFF of {self.samples} {bits}-bit {kinds} samples, {colours}{planes}{tiles}{turned}, "
            f"compression {self.compression}, predictor {self.predictor}"
        )


def read_layout(payload: bytes) -> TiffLayout | None:
    """The layout of a TIFF; None of what is none, or has no sound first directory."""
    if payload[:4] not in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        return None
    try:
        tags = ImageFileDirectory_v2(payload[: 16 if b"+" in payload[2:4] else 8])
        file = io.BytesIO(payload)
        file.seek(tags.next)
        tags.load(file)
        photometric = _number(tags, _PHOTOMETRIC, 0)
        # Without a count, JPEG of the old kind means colour.
        compression = _number(tags, _COMPRESSION, _UNCOMPRESSED)
        samples = _number(tags, _SAMPLES, 3 if compression in _WHOLE_JPEG and photometric in {2, 6} else 1)
        layout = TiffLayout(
            width=_number(tags, _WIDTH),
            height=_number(tags, _HEIGHT),
            bits=_numbers(tags, _BITS, (1,)),
            kinds=_numbers(tags, _SAMPLE_FORMAT, (_UNSIGNED,)),
            photometric=photometric,
            samples=samples,
            extra=_numbers(tags, _EXTRA_SAMPLES, ()),
            planar=_number(tags, _PLANAR, 1) == 2,
            compression=compression,
            predictor=_number(tags, _PREDICTOR, 1),
            fill_order=_number(tags, _FILL_ORDER, 1),
            tags=tags,
        )
    except Exception:  # noqa: BLE001  damage of any kind; Pillow's reader raises of all kinds
        return None
    return layout if _STRIP_OFFSETS in tags or _TILE_OFFSETS in tags else None


def _numbers(tags: Mapping[int, Any], tag: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(number, int) for number in values):
        raise ValueError(f"tag {tag} holds no integers")
    return values


def _number(tags: Mapping[int, Any], tag: int, default: int | None = None) -> int:
    return _numbers(tags, tag, None if default is None else (default,))[0]


def decode_tiff(payload: bytes, layout: TiffLayout) -> Image.Image | None:
    """An upright RGB image of a layout that Pillow does not read right.

    Call it with Pillow's limit of pixels in force, and alone: the limit is changed meanwhile.

    Returns:
        None when Pillow itself reads the layout right, or can say what is wrong.

    Raises:
        BadRecord: `unsupported`, with the name of the layout.
    """
    if _misread(layout):
        raise BadRecord("unsupported", str(layout))
    if len(set(layout.bits)) > 1 or len(set(layout.kinds)) > 1:
        return None
    type_ = layout.bits[0], layout.kinds[0]
    if type_ not in _READ_AS or layout.photometric not in {_WHITE_IS_0, _BLACK_IS_0, _RGB, _CMYK}:
        return None
    if type_ == (8, _UNSIGNED) and not layout.planar:
        return None
    _, colours = _COLOURS[layout.photometric]
    if not colours <= layout.samples <= _MOST_SAMPLES:
        raise BadRecord("unsupported", str(layout))
    if not _as_one_plane(layout) and not layout.planar and layout.samples > 1:
        if type_ == (16, _UNSIGNED) and layout.photometric in {_RGB, _CMYK}:
            return None  # here Pillow's table is right
        raise BadRecord("unsupported", str(layout))
    return _picture(payload, layout, colours)


def _misread(layout: TiffLayout) -> bool:
    """Whether Pillow would take the layout for another one."""
    if layout.photometric == _CMYK and _number(layout.tags, _INK_SET, 1) != 1:
        return True  # other inks than cyan, magenta, yellow and black
    if 16 in layout.bits and _FLOAT in layout.kinds and layout.predictor != 1:
        return True  # libtiff undoes this predictor for 32 bits only
    if layout.photometric == _YCBCR and layout.compression == _UNCOMPRESSED and layout.samples == 3:
        # Pillow takes each pixel for three samples, whatever the chroma's resolution.
        stored = sum(_numbers(layout.tags, _STRIP_BYTES, _numbers(layout.tags, _TILE_BYTES, (0,))))
        named = _numbers(layout.tags, _SUBSAMPLING, (2, 2)) == (1, 1)
        return not named and stored < 3 * layout.width * layout.height
    return False


def _as_one_plane(layout: TiffLayout) -> bool:
    """Whether the samples of a row follow one another like the pixels of a wider image."""
    return (
        not layout.planar
        and layout.predictor == 1
        and layout.compression not in _WHOLE_JPEG
        and _TILE_OFFSETS not in layout.tags
    )


def _picture(payload: bytes, layout: TiffLayout, colours: int) -> Image.Image:
    kinds = layout.extra or ((_ALPHA,) if layout.photometric == _RGB and layout.samples == 4 else ())
    at = next((i for i, kind in enumerate(kinds) if kind in {_MULTIPLIED_ALPHA, _ALPHA}), None)
    wanted = [*range(colours), *([] if at is None or colours + at >= layout.samples else [colours + at])]
    if layout.planar or layout.samples == 1:
        values = np.stack([_plane(payload, layout, plane, 1) for plane in wanted], axis=2)
    else:
        row = _plane(payload, layout, 0, layout.samples)
        values = row.reshape(layout.height, layout.width, layout.samples)[..., wanted]
    alpha = values[..., colours] if len(wanted) > colours else None
    image = from_channels(values[..., :colours], alpha)
    if layout.photometric == _WHITE_IS_0:
        bands = image.split()
        image = Image.merge(image.mode, [ImageChops.invert(bands[0])] * 3 + list(bands[3:]))
    if image.mode == "RGBA":
        image = over_white(image, multiplied=at is not None and kinds[at] == _MULTIPLIED_ALPHA)
    elif image.mode == "CMYK":
        image.info["icc_profile"] = layout.tags.get(_PROFILE)
        image = cmyk_to_rgb(image)
    return image


def _plane(payload: bytes, layout: TiffLayout, plane: int, across: int) -> NDArray[Any]:
    """[height, across * width] of the samples of one plane, of their true type."""
    bits, kind = layout.bits[0], layout.kinds[0]
    told, true = _READ_AS[bits, kind]
    tags = {tag: _numbers(layout.tags, tag) for tag in _COPIED if tag in layout.tags}
    tags |= {_WIDTH: (layout.width * across,), _BITS: (bits,), _SAMPLE_FORMAT: (told,)}
    tags |= {_PHOTOMETRIC: (_BLACK_IS_0,), _SAMPLES: (1,), _PLANAR: (1,)}
    for tag in _LISTS:
        if tag in layout.tags:
            pieces = _numbers(layout.tags, tag)
            count = len(pieces) // layout.samples if layout.planar else len(pieces)
            tags[tag] = pieces[plane * count : (plane + 1) * count]
    if max(_ends(layout, tags)) > len(payload):
        raise BadRecord("truncated", str(layout))  # what stands behind the file must not be read as samples
    order = payload[:2]
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = layout.width * layout.height * across
    try:
        with Image.open(io.BytesIO(_under_directory(payload, tags)), formats=("TIFF",)) as opened:
            values = np.asarray(opened)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if values.shape != (layout.height, layout.width * across):
        raise BadRecord("unsupported", str(layout))
    if bits == 32 and order == b"MM" and layout.compression != _UNCOMPRESSED:
        values = values.byteswap()  # libtiff hands over the machine's order; Pillow turns it round once more
    if values.dtype.byteorder == ">":
        return values.view(f">{true}")
    return values.view(true)


def _ends(layout: TiffLayout, tags: Mapping[int, tuple[int, ...]]) -> Iterator[int]:
    """Where each strip or tile of a plane ends in the file."""
    tiled = _TILE_OFFSETS in tags
    offsets = tags[_TILE_OFFSETS if tiled else _STRIP_OFFSETS]
    if layout.compression != _UNCOMPRESSED:
        sizes = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ())
        yield from (at + size for at, size in zip(offsets, sizes, strict=True))
        return
    width = tags[_TILE_WIDTH if tiled else _WIDTH][0]
    rows = tags[_TILE_HEIGHT][0] if tiled else tags.get(_ROWS_PER_STRIP, (layout.height,))[0]
    for piece, at in enumerate(offsets):
        count = rows if tiled else max(min(rows, layout.height - piece * rows), 0)
        yield at + width * count * layout.bits[0] // 8


def _under_directory(payload: bytes, tags: Mapping[int, tuple[int, ...]]) -> bytes:
    """The file with another directory, of short and long integers, behind it."""
    end = ">" if payload[:2] == b"MM" else "<"
    start = len(payload) + len(payload) % 2
    behind = start + 2 + 12 * len(tags) + 4
    directory, values = struct.pack(f"{end}H", len(tags)), b""
    for tag in sorted(tags):
        kind, letter = (3, "H") if tag in _SHORT else (4, "I")
        packed = struct.pack(f"{end}{len(tags[tag])}{letter}", *tags[tag])
        if len(packed) > 4:
            place, values = struct.pack(f"{end}I", behind + len(values)), values + packed
            values += b"\0" * (len(values) % 2)
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack(f"{end}HHI", tag, kind, len(tags[tag])) + place
    header = payload[:2] + struct.pack(f"{end}HI", 42, start)
    padding = b"\0" * (start - len(payload))
    return b"".join((header, payload[8:], padding, directory, b"\0\0\0\0", values))
