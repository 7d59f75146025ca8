"""From what Pillow loaded, in any of its modes, to 8-bit RGB.

Where a format leaves open what a value means, one rule holds for all formats:

- **Deep values** (16 and 32 bits, floating point). Files rarely say which of their bits are used. Black is
  0, and white is the largest number of as many bits as the largest value needs (of floating point: the next
  power of two). So 12 bits look the same whether they fill 12 bits or lie in 16, and a 16-bit photograph
  looks like its 8-bit copy. Where values are negative, or differ by less than an eighth of that range, the
  smallest value is black and the largest white. sBIT of PNG is not asked: writers put those bits at either
  end of the 16.
- **Transparency** lies on white. Alpha that is zero at every pixel is not in use, and is left out.
- **CMYK** is converted by the profile inside the file, where there is one; otherwise R = (1 - C)(1 - K) and
  so on. In JPEG and PSD 0 is full ink, as Adobe writes it.
"""

import io
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms, ImagePalette

from stream.errors import BadRecord
from stream.images.png_chunks import chunks

_WHITE = (255, 255, 255, 255)
_ROWS_AT_ONCE = 256

_LEAST_SPAN = 1 / 8
"""Of the range of the bits in use; what fills less would be left with fewer than 32 of 256 grey levels."""

_HALF = 128
"""A high byte of this or more: all 16 bits are in use."""

_OTHER_BYTE = {
    f"{channels};16{order}": f"{channels};16{other}"
    for channels in ("RGB", "RGBX", "RGBA", "CMYK")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
"""Pillow keeps the high byte of deep colours. Under the other byte order it keeps the low one."""

_SUN_PADDING = {"RGBX": "XRGB", "BGRX": "XBGR"}
"""In Sun rasters of 32 bits the byte that is not used comes first."""

_COLOUR_MAP = 320
"""The tag of TIFF."""

_CODESTREAM = b"\xff\x4f\xff\x51"
"""Its start and the marker of image and tile size, ISO/IEC 15444-1, A.5.1."""

_GREY_ALPHA = "LA;16B"
"""Pillow's raw mode of deep grey with alpha. Its four bytes can be read as RGBA."""


def raw_mode(image: Image.Image) -> str:
    """How the samples of an opened image are stored, in Pillow's words; to be asked before it is loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def mend(image: Image.Image) -> None:
    """Put right what Pillow takes wrong in an opened image, before it is loaded."""
    if image.format == "SUN":
        _retell(image, _SUN_PADDING)
    elif image.format == "PPM" and getattr(image, "tile", [])[0].args == ("RGB", 65535):
        # Pillow keeps the high bytes only, one by one in Python.
        image.tile = [tile._replace(codec_name="raw", args="RGB;16B") for tile in image.tile]  # type: ignore[attr-defined]
    elif image.format == "TIFF" and image.mode in {"P", "PA"}:
        entries = getattr(image, "tag_v2", {}).get(_COLOUR_MAP, ())
        if entries and max(entries) < 256:  # 8 bits where the format has 16; libtiff knows such files too
            image.palette = ImagePalette.raw("RGB;L", bytes(entries))


def _retell(image: Image.Image, other: Mapping[str, str]) -> None:
    """Name another raw mode for the samples of an opened image, where `other` has one."""
    tiles = getattr(image, "tile", [])
    new = other.get(raw_mode(image))
    if new is not None:
        image.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(new, *tile.args[1:]) if isinstance(tile.args, tuple) else new)
            for tile in tiles
        ]


def to_rgb(image: Image.Image, payload: bytes, raw: str) -> Image.Image:
    """A loaded image of any mode as RGB.

    Args:
        image: loaded; it is returned itself when it is 8-bit RGB already.
        payload: the bytes it was read from.
        raw: its `raw_mode`.
    """
    if image.format == "PNG":
        _drop_impossible_transparency(image, payload)
    elif image.format == "JPEG2000":
        _check_deep_jpeg2000(image, payload)
    if raw in _OTHER_BYTE or raw == _GREY_ALPHA:
        image = _deep_colour(image, payload, raw)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_deep_image(image)).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode == "CMYK":
        return cmyk_to_rgb(image)
    if image.has_transparency_data:
        return _on_white(image, payload, raw)
    if image.format == "XBM":  # a set bit is foreground, which is black; Pillow makes it white
        return ImageChops.invert(image.convert("RGB"))
    return image.convert("RGB")


def _check_deep_jpeg2000(image: Image.Image, payload: bytes) -> None:
    """Refuse colours of more than 8 bits where it is not known which were white.

    Pillow rounds them to 8 bits and lets 255.5 become 0. It keeps no bits below these 8 either.
    """
    at = payload.find(_CODESTREAM)
    count = int.from_bytes(payload[at + 40 : at + 42], "big")
    depth = max(((byte & 0x7F) + 1 for byte in payload[at + 42 : at + 42 + 3 * count : 3]), default=8)
    if at < 0 or depth <= 8 or image.mode.startswith("I"):
        return
    levels = np.asarray(image)
    if levels.min() == 0 or levels.max() < _HALF:
        raise BadRecord(
            "unsupported", f"JPEG 2000 of {count} {depth}-bit components that reach black or white"
        )


def cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """By the profile inside the file; by the plain formula where there is none that fits."""
    embedded = image.info.get("icc_profile")
    if embedded:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            if profile.profile.xcolor_space.strip() == "CMYK":
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
                assert converted is not None  # it is None only for inPlace=True
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # no profile, or not one of CMYK: no reason to lose the picture
    return image.convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is None only for inPlace=True
    return converted


def _on_white(image: Image.Image, payload: bytes, raw: str) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if raw.startswith("RGBa") and rgba.getchannel("A").getextrema() == (0, 0):
        # Colours are stored multiplied by alpha, and Pillow divided them by zero.
        rgba = _read_as(payload, image, raw.replace("RGBa", "RGBA"))
    return over_white(rgba)


def over_white(rgba: Image.Image, *, multiplied: bool = False) -> Image.Image:
    """An RGBA image on a white page; without its alpha where that is zero at every pixel.

    Args:
        rgba: the image.
        multiplied: its colours are multiplied by its alpha already.
    """
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (0, 0):
        return rgba.convert("RGB")
    if multiplied:
        page = ImageChops.invert(alpha)
        return ImageChops.add(rgba.convert("RGB"), Image.merge("RGB", [page] * 3))
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")


def _read_as(payload: bytes, image: Image.Image, raw: str) -> Image.Image:
    """The same image once more, its samples taken as `raw`."""
    assert image.format is not None
    again = Image.open(io.BytesIO(payload), formats=(image.format,))
    mend(again)
    _retell(again, {raw_mode(again): raw})
    again.load()
    return again


def _drop_impossible_transparency(image: Image.Image, payload: bytes) -> None:
    """Leave out a tRNS chunk with more entries than the palette, as libpng does; Pillow believes it."""
    if image.mode == "P" and "transparency" in image.info:
        sizes = {kind: len(body) for kind, body, _ in chunks(payload)}
        if sizes.get(b"tRNS", 0) > sizes.get(b"PLTE", 0) // 3:
            del image.info["transparency"]


# Deep values ------------------------------------------------------------------------------------------------


def _deep_image(image: Image.Image) -> NDArray[np.uint8]:
    """[H, W] of an image of mode I, I;16 or F."""
    values = np.asarray(image)
    grey = deep_to_bytes(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        unseen = values == transparent
        if not unseen.all():
            grey[unseen] = 255
    return grey


def _deep_colour(image: Image.Image, payload: bytes, raw: str) -> Image.Image:
    """What Pillow made of the high bytes of 16-bit colours, or better where these do not hold the picture."""
    high = np.asarray(image)
    colours = 4 if image.mode == "CMYK" else 3
    if high[..., :colours].max() >= _HALF:
        return image
    if raw == _GREY_ALPHA:
        pairs = np.asarray(_read_as(payload, image, "RGBA")).astype(np.uint16)
        values = (pairs[..., 0::2] << 8 | pairs[..., 1::2])[..., [0, 0, 0, 1]]
    else:
        values = high.astype(np.uint16) << 8 | np.asarray(_read_as(payload, image, _OTHER_BYTE[raw]))
    alpha = values[..., colours] if values.shape[2] > colours else None
    transparent = image.info.get("transparency")
    if alpha is None and isinstance(transparent, tuple):
        alpha = np.where((values == np.array(transparent)).all(axis=2), 0, 65535).astype(np.uint16)
    picture = from_channels(values[..., :colours], alpha)
    picture.info.update({key: image.info[key] for key in ("icc_profile",) if key in image.info})
    return picture


def from_channels(values: NDArray[Any], alpha: NDArray[Any] | None) -> Image.Image:
    """Deep channels as an 8-bit image: RGB from one or three, CMYK from four; RGBA with an alpha channel."""
    levels = deep_to_bytes(values)
    if levels.shape[2] == 1:
        levels = np.repeat(levels, 3, axis=2)
    height, width, count = levels.shape
    mode = "RGB" if count == 3 else "CMYK"
    if alpha is not None and count == 3:
        # Alpha has as many bits as the colours, unless it needs more.
        top = white_of(max(_extremes(alpha)[1], _extremes(values)[1]), alpha.dtype)
        levels = np.dstack([levels, alpha if alpha.dtype == np.uint8 else _scaled(alpha, 0.0, top)])
        mode = "RGBA"
    return Image.frombytes(mode, (width, height), levels.tobytes())


def deep_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Deep values, by the rule that the module states, as uint8 of the same shape; uint8 as it is."""
    if values.dtype == np.uint8:
        return values
    low, high = _extremes(values)
    white = white_of(high, values.dtype)
    if low < 0 or 0 < high - low < _LEAST_SPAN * white:
        return _scaled(values, low, high)
    return _scaled(values, 0.0, white)


def white_of(largest: float, kind: np.dtype[Any]) -> float:
    """The largest number of as many bits as `largest` needs."""
    if largest <= 0:
        return 0.0
    if kind.kind == "f":
        fraction, exponent = math.frexp(largest)
        return math.ldexp(1.0, exponent - 1 if fraction == 0.5 else min(exponent, 1023))
    return float(2 ** int(largest).bit_length() - 1)


def _extremes(values: NDArray[Any]) -> tuple[float, float]:
    return (
        float(min(_finite(band).min() for band in _bands(values))),
        float(max(_finite(band).max() for band in _bands(values))),
    )


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """`low` becomes 0 and `high` 255, a few rows at a time: float64 takes much memory."""
    factor = 255.0 / (high - low) if high > low else 0.0
    levels = np.empty(values.shape, dtype=np.uint8)
    for band, out in zip(_bands(values), _bands(levels), strict=True):
        out[:] = np.clip(np.rint((_finite(band) - low) * factor), 0.0, 255.0)
    return levels


def _bands(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[top : top + _ROWS_AT_ONCE] for top in range(0, len(rows), _ROWS_AT_ONCE)]


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
