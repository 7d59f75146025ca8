"""Bytes to an upright RGB image: one function for everything that looks at pixels.

What a file is called is never looked at, and its size is checked before its pixels are. A JPEG of one or
three 8-bit components goes through simplejpeg, everything else through Pillow; both use libjpeg-turbo and
agree on a JPEG. A damage that costs pixels refuses the image, metadata never do: they are not looked at, but
for the orientation. What the picture is, where a format leaves a choice:

- the orientation that EXIF states, or else XMP, is applied; of several frames the first is taken, of an icon
  the largest;
- transparency lies on white, the page that most such images were drawn for; alpha that is zero at every
  pixel is not in use, and is left out;
- values of more than 8 bits become 8 bits by one rule, which `stream.images.pixel_formats` states;
- CMYK (by the profile inside the file) and L*a*b* become sRGB; profiles and gamma of RGB and grey images are
  not applied.
"""

import io
import threading
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from stream.errors import BadRecord
from stream.images.exif import orientation_of_block
from stream.images.jpeg import check_scans, decode_jpeg, jpeg_frame
from stream.images.metadata import without_metadata
from stream.images.orientation import orientation_of, upright
from stream.images.pixel_formats import mend, raw_mode, to_rgb
from stream.images.tiff_layouts import decode_tiff, read_layout
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
            bare = without_metadata(payload)
            opened, turned = _open_tiff(bare, max_pixels) or _open(bare, max_pixels)
            pixels = np.array(opened)
        except BadRecord:
            raise
        except Exception as error:  # one bad record; Pillow's readers raise of all kinds
            raise _bad_record(payload, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise BadRecord("undecodable", f"decoded to shape {pixels.shape}")
    return upright(torch.from_numpy(pixels).permute(2, 0, 1), turned or orientation_of(payload))


def _open(payload: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """The picture as RGB, and how an AVIF says that it is turned; 0 in other formats."""
    with Image.open(io.BytesIO(payload), formats=FORMATS) as opened:
        _check_pixels(*opened.size, max_pixels)
        mend(opened)
        raw = raw_mode(opened)
        opened.load()
        _check_pixels(*opened.size, max_pixels)
        # Pillow puts what the header of an AVIF says into an EXIF block.
        turned = orientation_of_block(opened.info.get("exif", b"")) if opened.format == "AVIF" else 0
        return to_rgb(opened, payload, raw), turned


def _open_tiff(payload: bytes, max_pixels: int) -> tuple[Image.Image, int] | None:
    """A TIFF that Pillow itself would read wrong; None for everything else."""
    layout = read_layout(payload)
    if layout is None:
        return None
    _check_pixels(layout.width, layout.height, max_pixels)
    image = decode_tiff(payload, layout)
    return None if image is None else (image, 0)


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
