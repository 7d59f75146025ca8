"""Bytes to an upright RGB image: one function for everything that looks at pixels.

What a file is called is never looked at, and its size is checked before its pixels are. A JPEG of one or
three 8-bit components goes through torchvision's decoder, everything else through Pillow; both use
libjpeg-turbo and agree on a JPEG. What the picture is, where a format leaves a choice:

- the orientation that EXIF states is applied; of several frames the first is taken, of an icon the largest;
- transparency lies on white, the page that most such images were drawn for; alpha that is zero at every
  pixel is not in use, and is left out;
- values of more than 8 bits become 8 bits by one rule, which `stream.pixel_formats` states;
- CMYK (by the profile inside the file) and L*a*b* become sRGB; profiles and gamma of RGB and grey images are
  not applied.
"""

import io
import threading
import warnings
from collections.abc import Mapping

import numpy as np
import torch
import torchvision  # noqa: F401  registers torch.ops.image
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stream.errors import BadRecord
from stream.pixel_formats import mend, raw_mode, to_rgb
from stream.record import media_type_of
from stream.tiff_layouts import decode_tiff, read_layout

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
_RGB = 3
"""torchvision's ImageReadMode.RGB."""

# JPEG markers, ITU-T T.81 table B.1.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9

_MOST_SCANS = 200
"""Ordinary progressive files have about ten. A scan costs its author a dozen bytes and the decoder a pass
over all pixels, so a small file with a million of them would hold a reader for hours."""

_LONGEST_SIDE = 65_535
"""Pixels; what a JPEG can have."""

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
        # Within a scan FF is followed by 00 or a restart marker, so this counts every scan.
        if payload.count(b"\xff\xda") > _MOST_SCANS:
            raise BadRecord("undecodable", f"more than {_MOST_SCANS} scans")
        frame = jpeg_frame(payload)
        if frame is not None:
            width, height, components = frame
            _check_pixels(width, height, max_pixels)
            if components in {1, 3}:
                image = _decode_jpeg(payload)
                if image is not None:
                    return image
    return _decode_with_pillow(payload, max_pixels)


def jpeg_frame(payload: bytes) -> tuple[int, int, int] | None:
    """Width, height (as stored) and number of components of an 8-bit JPEG, without decoding it.

    Walks the markers as libjpeg does, so that both see the same frame header.

    Returns:
        None when there is no frame header of 8-bit samples.
    """
    at, end = 2, len(payload)
    while True:
        at = payload.find(b"\xff", at)
        if at < 0:
            return None
        while at < end and payload[at] == 0xFF:
            at += 1
        if at + 3 > end:
            return None
        marker = payload[at]
        at += 1
        if marker == 0 or marker in _WITHOUT_LENGTH:
            continue
        if marker in {_START_OF_SCAN, _END_OF_IMAGE}:
            return None
        if marker in _START_OF_FRAME:
            if at + 8 > end or payload[at + 2] != 8:
                return None
            height = payload[at + 3] << 8 | payload[at + 4]
            width = payload[at + 5] << 8 | payload[at + 6]
            return width, height, payload[at + 7]
        at += payload[at] << 8 | payload[at + 1]


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) > _LONGEST_SIDE:  # squeezing a long thin line takes a table as long as it
        raise BadRecord("too_large", f"{width} x {height} pixels, a side may have {_LONGEST_SIDE}")
    if width * height > max_pixels:
        raise BadRecord("too_large", f"{width} x {height} pixels, the limit is {max_pixels}")


def _decode_jpeg(payload: bytes) -> Tensor | None:
    """Through torchvision's operator; None when it refuses or is not there: Pillow decodes or explains."""
    # The public function warns at each call that it will be removed; the operator below it does not.
    data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    try:
        image: Tensor = torch.ops.image.decode_jpeg(data, _RGB, True)
    except (RuntimeError, AttributeError):
        return None
    return image


def _decode_with_pillow(payload: bytes, max_pixels: int) -> Tensor:
    # Pillow's own checks for bombs also cover images inside images (icons, TIFF pages): they are given our
    # limit. Limit and warning filters are of the whole process, hence the lock.
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            pixels = np.array(_open_tiff(payload, max_pixels) or _open(payload, max_pixels))
        except BadRecord:
            raise
        except Exception as error:  # one bad record; Pillow's readers raise of all kinds
            raise _bad_record(payload, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise BadRecord("undecodable", f"decoded to shape {pixels.shape}")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _open(payload: bytes, max_pixels: int) -> Image.Image:
    with Image.open(io.BytesIO(payload), formats=FORMATS) as opened:
        _check_pixels(*opened.size, max_pixels)
        mend(opened)
        raw = raw_mode(opened)
        opened.load()
        _check_pixels(*opened.size, max_pixels)
        return ImageOps.exif_transpose(_to_rgb(opened, payload, raw))


def _open_tiff(payload: bytes, max_pixels: int) -> Image.Image | None:
    """A TIFF that Pillow itself would read wrong; None for everything else."""
    layout = read_layout(payload)
    if layout is None:
        return None
    _check_pixels(layout.width, layout.height, max_pixels)
    return decode_tiff(payload, layout)


def _bad_record(payload: bytes, error: Exception) -> BadRecord:
    detail = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return BadRecord("too_large", detail)
    if isinstance(error, UnidentifiedImageError) or "raw mode" in str(error):
        layout = read_layout(payload)
        if layout is not None:
            return BadRecord("unsupported", str(layout))
    if isinstance(error, UnidentifiedImageError):
        media_type = media_type_of(payload)
        if media_type is None:
            return BadRecord("not_an_image")
        return BadRecord("unsupported" if media_type in _UNSUPPORTED else "undecodable", media_type)
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return BadRecord("truncated", detail)
    return BadRecord("undecodable", detail)


def _to_rgb(image: Image.Image, payload: bytes, raw: str) -> Image.Image:
    """A loaded image of any mode as RGB, with the EXIF block that says how it is turned."""
    rgb = to_rgb(image, payload, raw)
    if rgb is image:
        return image
    orientation = image.getexif().get(0x0112)
    if orientation is not None:
        rgb.getexif()[0x0112] = orientation
    return rgb
