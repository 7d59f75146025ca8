"""Bytes to an upright RGB image: one function for everything that looks at pixels.

What a file is called is never looked at, and its size is checked before its pixels are. A JPEG of one or
three 8-bit components goes through simplejpeg, everything else through Pillow; both use libjpeg-turbo and
agree on a JPEG. A damage that costs pixels refuses the image, metadata never do: they are not looked at, but
for the orientation. What the picture is, where a format leaves a choice:

- the orientation that EXIF states, or else XMP, is applied; of several frames the first is taken, of an icon
  the largest;
- transparency lies on white, the page that most such images were drawn for;
- 16-bit PNG and PNM are scaled linearly from the full range of their type. Other 16- and 32-bit integer and
  floating-point images do not say what white is: their smallest value becomes black and their largest white;
- CMYK and L*a*b* become sRGB; colour profiles of RGB images are not applied.
"""

import io
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from stream.errors import BadRecord
from stream.exif import orientation_of_block
from stream.jpeg import check_scans, decode_jpeg, jpeg_frame
from stream.metadata import without_metadata
from stream.orientation import orientation_of, upright
from stream.record import media_type_of

REASONS: Mapping[str, str] = {
    "empty": "no bytes at all",
    "not_an_image": "the first bytes belong to no image format",
    "unsupported": "an image format that no decoder here reads",
    "truncated": "the data ends before the image does",
    "too_large": "more pixels than the limit, or more memory than there is",
    "undecodable": "an image by its first bytes, but damaged or of a variant that no decoder here reads",
}
"""Why `decode_image` refuses, each with its meaning."""

# Raster formats whose readers neither start another program (EPS starts Ghostscript) nor are mere stubs.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "DIB", "PSD", "QOI",
    "DDS", "SGI", "CUR", "ICNS", "SUN", "XBM", "PCX", "DCX", "FLI", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read."""

_UNSUPPORTED = frozenset({"image/heic", "image/jxl", "image/svg+xml"})
_WHITE = (255, 255, 255, 255)

_LONGEST_SIDE = 65_535
"""Pixels; what a JPEG can have."""

_ROWS_AT_ONCE = 256

_pillow_lock = threading.Lock()


def decode_image(payload: bytes, *, max_pixels: int) -> Tensor:
    """Decode one image.

    Takes up to about twenty bytes of memory a pixel while it works (most with transparency). May be called
    from any thread.

    Args:
        payload: the encoded image.
        max_pixels: width x height above which the image is refused before it is decoded; >= 1.

    Returns:
        [3, H, W] uint8 RGB, upright. The order in memory is not promised.

    Raises:
        BadRecord: with one of `REASONS`; nothing else, whatever the bytes are.
    """
    if not payload:
        raise BadRecord("empty")
    if payload.startswith(b"\xff\xd8\xff"):
        frame = jpeg_frame(payload)
        if frame is not None:
            _check_pixels(frame[0], frame[1], max_pixels)
        check_scans(payload)
        if frame is not None and frame[2] in {1, 3, 4}:
            stored = decode_jpeg(payload, "CMYK" if frame[2] == 4 else "RGB")
            if stored is not None and frame[2] != 4:  # Pillow knows what Adobe's CMYK means
                return upright(torch.from_numpy(stored).permute(2, 0, 1), orientation_of(payload))
    return _decode_with_pillow(payload, max_pixels)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) > _LONGEST_SIDE:  # squeezing a long thin line takes a table as long as it
        raise BadRecord("too_large", f"{width} x {height} pixels, a side may have {_LONGEST_SIDE}")
    if width * height > max_pixels:
        raise BadRecord("too_large", f"{width} x {height} pixels, the limit is {max_pixels}")


def _decode_with_pillow(payload: bytes, max_pixels: int) -> Tensor:
    # Pillow's own checks for bombs also cover images inside images (icons, TIFF pages): they are given our
    # limit. Limit and warning filters are of the whole process, hence the lock.
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            with Image.open(io.BytesIO(without_metadata(payload)), formats=FORMATS) as opened:
                _check_pixels(*opened.size, max_pixels)
                opened.load()
                _check_pixels(*opened.size, max_pixels)
                pixels = np.array(_to_rgb(opened))
                # Pillow puts what the header of an AVIF says into an EXIF block.
                turned = orientation_of_block(opened.info.get("exif", b"")) if opened.format == "AVIF" else 0
        except BadRecord:
            raise
        except Exception as error:  # one bad record; Pillow's readers raise of all kinds
            raise _bad_record(payload, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise BadRecord("undecodable", f"decoded to shape {pixels.shape}")
    return upright(torch.from_numpy(pixels).permute(2, 0, 1), turned or orientation_of(payload))


def _bad_record(payload: bytes, error: Exception) -> BadRecord:
    detail = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return BadRecord("too_large", detail)
    if isinstance(error, UnidentifiedImageError):
        media_type = media_type_of(payload)
        if media_type is None:
            return BadRecord("not_an_image")
        return BadRecord("unsupported" if media_type in _UNSUPPORTED else "undecodable", media_type)
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return BadRecord("truncated", detail)
    return BadRecord("undecodable", detail)


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB."""
    mode = image.mode
    if mode == "RGB" and not image.has_transparency_data:
        return image
    if mode.startswith(("I", "F")):
        rgb = Image.fromarray(_deep_to_bytes(image)).convert("RGB")
    elif mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is None only for inPlace=True
        rgb = converted
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    return rgb


def _deep_to_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits as [H, W] uint8, a few rows at a time: float64 takes much memory."""
    values = np.asarray(image)
    if image.format in {"PNG", "PPM"}:
        low, high = 0.0, 65535.0
    else:
        low = float(min(_finite(band).min() for band in _bands(values)))
        high = float(max(_finite(band).max() for band in _bands(values)))
    factor = 255.0 / (high - low) if high > low else 0.0
    grey = np.empty(values.shape, dtype=np.uint8)
    for band, out in zip(_bands(values), _bands(grey), strict=True):
        out[:] = np.clip(np.rint((_finite(band) - low) * factor), 0.0, 255.0)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[np.asarray(image) == transparent] = 255
    return grey


def _bands(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[top : top + _ROWS_AT_ONCE] for top in range(0, len(rows), _ROWS_AT_ONCE)]


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
