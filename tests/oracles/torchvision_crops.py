"""Multi-crop as torchvision's public functions do it, one crop at a time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from stream.config import CropConfig


def box(height: int, width: int, crop: CropConfig, row: Sequence[float]) -> tuple[int, int, int, int]:
    """Top, left, height, width by the rule of RandomResizedCrop, from given uniform numbers.

    Numbers 2t and 2t + 1 are try t's area and ratio (ten tries); 20 and 21 place the corner.
    """
    for t in range(10):
        area = height * width * (crop.scale_min * (1 - row[2 * t]) + crop.scale_max * row[2 * t])
        ratio = (3 / 4) ** (1 - row[2 * t + 1]) * (4 / 3) ** row[2 * t + 1]
        w = round((area * ratio) ** 0.5)
        h = round((area / ratio) ** 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            return math.floor(row[20] * (height - h + 1)), math.floor(row[21] * (width - w + 1)), h, w
    whole = width / height
    if whole < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif whole > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def multi_crop(image: Tensor, crops: Sequence[CropConfig], rows: Sequence[Sequence[float]]) -> list[Tensor]:
    """For each kind [count, 3, S, S] uint8; number 22 below one half mirrors the crop."""
    remaining = iter(rows)
    kinds = []
    for crop in crops:
        views = []
        for _ in range(crop.count):
            row = next(remaining)
            top, left, h, w = box(image.shape[1], image.shape[2], crop, row)
            size = [crop.size, crop.size]
            view = v2.functional.resized_crop(image, top, left, h, w, size, antialias=True)
            views.append(v2.functional.horizontal_flip(view) if row[22] < 0.5 else view)
        kinds.append(torch.stack(views))
    return kinds
