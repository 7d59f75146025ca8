"""The geometric half of multi-crop, on uint8, seeded by the sample.

Every view of a sample owns `FLOATS_PER_VIEW` uniform numbers, drawn from a counter-based generator that is
keyed by the sample's name: the same sample gets the same views on any worker, rank or resume, and a view does
not change when further views are added. The row of a view: ten tries of (area, aspect ratio), the corner, the
flip, one spare, and then the `UNIFORMS_PER_VIEW` numbers that the learner uses for the photometric half.

Boxes follow torchvision's RandomResizedCrop (Szegedy et al. 2015, section 6): a share of the area, uniform;
an aspect ratio, log-uniform in 3/4 .. 4/3; if ten tries do not fit, the largest central crop within these
ratios. Resizing is bilinear with antialiasing, on uint8.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from stream.config import CropConfig

FLOATS_PER_VIEW = 40
UNIFORMS_PER_VIEW = 16
_TRIES = 10
_CORNER = 2 * _TRIES
_FLIP = _CORNER + 2
_UNIFORMS = FLOATS_PER_VIEW - UNIFORMS_PER_VIEW
_RATIO_MIN, _RATIO_MAX = 3 / 4, 4 / 3
_LOG_MIN, _LOG_MAX = math.log(_RATIO_MIN), math.log(_RATIO_MAX)

_PURPOSE = int.from_bytes(b"crops")
"""Second half of the Philox key: keeps these numbers apart from others that are drawn with the run's seed."""
_MASK = 2**64 - 1

Box = tuple[int, int, int, int, bool]
"""Top, left, height, width in pixels of the upright image; and whether the crop is flipped left to right."""


def num_views(crops: Sequence[CropConfig]) -> int:
    """Views of one sample, over all kinds of crops."""
    return sum(crop.count for crop in crops)


def draw(seed: int, lane: int, seq: int, draw: int, n: int) -> NDArray[np.float64]:
    """The first `n` uniform numbers of one draw of one sample.

    Philox 4x64 with key (seed, "crops") and counter (block, seq, lane, draw): no two samples share a block.

    Args:
        seed: of the run; 0 .. 2^64 - 1.
        lane: the sample's lane.
        seq: the sample's number in its lane.
        draw: how often the sample was used before; each use gets other views.
        n: how many numbers; >= 0.

    Returns:
        [n] float64 in [0, 1).
    """
    key = np.array([seed & _MASK, _PURPOSE], dtype=np.uint64)
    counter = np.array([0, seq, lane, draw], dtype=np.uint64)
    return unit_interval(np.random.Philox(key=key, counter=counter).random_raw(n))


def unit_interval(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Raw words of a generator as float64 in [0, 1), 53 bits each.

    numpy promises that raw words never change, but not the numbers that its Generator makes of them (NEP 19).
    """
    floats = (words >> np.uint64(11)).astype(np.float64)
    floats *= 2.0**-53
    return floats


def uniforms(floats: NDArray[np.float64]) -> NDArray[np.float32]:
    """The photometric numbers of each view, cut from the views' rows.

    Args:
        floats: [..., FLOATS_PER_VIEW] float64 in [0, 1).

    Returns:
        [..., UNIFORMS_PER_VIEW] float32 in [0, 1).
    """
    # Rounding to float32 could give 1.0; cut to 24 bits instead, which float32 holds exactly.
    cut: NDArray[np.float64] = np.floor(floats[..., _UNIFORMS:] * 2.0**24)
    return (cut * 2.0**-24).astype(np.float32)


def crop_box(height: int, width: int, crop: CropConfig, row: Sequence[float]) -> Box:
    """Where one crop lies.

    Args:
        height: of the image, pixels; >= 1.
        width: of the image, pixels; >= 1.
        crop: its shares of the area.
        row: the view's `FLOATS_PER_VIEW` numbers in [0, 1).
    """
    area = height * width
    flip = row[_FLIP] < 0.5
    for attempt in range(0, _CORNER, 2):
        target = area * (crop.scale_min + (crop.scale_max - crop.scale_min) * row[attempt])
        ratio = math.exp(_LOG_MIN + (_LOG_MAX - _LOG_MIN) * row[attempt + 1])
        w = round(math.sqrt(target * ratio))
        h = round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(row[_CORNER] * (height - h + 1))
            left = int(row[_CORNER + 1] * (width - w + 1))
            return top, left, h, w, flip
    w, h = width, height
    if width < height * _RATIO_MIN:
        h = round(width / _RATIO_MIN)
    elif width > height * _RATIO_MAX:
        w = round(height * _RATIO_MAX)
    return (height - h) // 2, (width - w) // 2, h, w, flip


def resize_box(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    """One box of an image, resized to a square: what torchvision's `resized_crop` gives, at less cost a call.

    Args:
        image: [3, H, W] uint8, any memory order.
        top: of the box, pixels.
        left: of the box, pixels.
        height: of the box, pixels; >= 1.
        width: of the box, pixels; >= 1.
        size: side of the result, pixels.

    Returns:
        [3, size, size] uint8.
    """
    box = image[None, :, top : top + height, left : left + width]
    if height == size and width == size:
        return box[0]
    return interpolate(box, size=[size, size], mode="bilinear", antialias=True)[0]


def multi_crop_into(
    image: Tensor,
    crops: Sequence[CropConfig],
    floats: NDArray[np.float64],
    out: Sequence[Tensor],
    column: int,
) -> None:
    """Cut all views of one image into one column of each kind's block.

    Args:
        image: [3, H, W] uint8.
        crops: kinds of crops.
        floats: [n_views, FLOATS_PER_VIEW] float64 in [0, 1), kinds in order.
        out: for each kind [count, B, 3, S, S] uint8 on the CPU; [:, column] is written.
        column: 0 .. B - 1.
    """
    height, width = image.shape[1], image.shape[2]
    rows = floats.tolist()
    view = 0
    for crop, block in zip(crops, out, strict=True):
        block_array = block.numpy()  # small pieces are copied with less overhead than by torch
        for index in range(crop.count):
            top, left, h, w, flip = crop_box(height, width, crop, rows[view])
            resized = resize_box(image, top, left, h, w, crop.size).numpy()
            block_array[index, column] = resized[:, :, ::-1] if flip else resized
            view += 1


def multi_crop(image: Tensor, crops: Sequence[CropConfig], floats: NDArray[np.float64]) -> list[Tensor]:
    """All views of one image.

    Args:
        image: [3, H, W] uint8.
        crops: kinds of crops.
        floats: [n_views, FLOATS_PER_VIEW] float64 in [0, 1), kinds in order; see `draw`.

    Returns:
        For each kind [count, 3, S, S] uint8.
    """
    out = [torch.empty((crop.count, 1, 3, crop.size, crop.size), dtype=torch.uint8) for crop in crops]
    multi_crop_into(image, crops, floats, out, 0)
    return [block[:, 0] for block in out]


def thumbnail(image: Tensor, size: int) -> Tensor:
    """The whole image squeezed to [3, size, size] uint8."""
    return resize_box(image, 0, 0, image.shape[1], image.shape[2], size)
