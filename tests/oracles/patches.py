"""Whitening, online k-means and features of patches in float64, mostly by plain loops."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def covariance(rows: Array) -> Array:
    centred = rows - rows.mean(0)
    return np.asarray(centred.T @ centred / len(rows))


def pca_whitened(estimated_on: Array, rows: Array, width: int) -> Array:
    """Rows in the directions of the `width` largest singular values, each with variance 1 where estimated."""
    mean = estimated_on.mean(0)
    _, lengths, directions = np.linalg.svd(estimated_on - mean, full_matrices=False)
    kept = min(width, int((lengths > 1e-4 * lengths[0]).sum()))
    return np.asarray((rows - mean) @ directions[:kept].T / (lengths[:kept] / math.sqrt(len(estimated_on))))


def contrast_normalised(patch: list[float]) -> list[float]:
    mean = sum(patch) / len(patch)
    variance = sum((value - mean) ** 2 for value in patch) / len(patch)
    return [(value - mean) / math.sqrt(variance + 10) for value in patch]


def patch(image: Array, top: int, left: int, side: int) -> list[float]:
    """Channel after channel, row after row."""
    return [
        float(image[channel, top + y, left + x])
        for channel in range(3)
        for y in range(side)
        for x in range(side)
    ]


def kmeans_step(
    centres: list[list[float]], seen: list[int], rows: list[list[float]]
) -> tuple[list[list[float]], list[int]]:
    """Every row goes to its nearest centre of before; then centres move, one row after the other."""
    nearest = [
        min((math.dist(row, centre), place) for place, centre in enumerate(centres))[1] for row in rows
    ]
    moved, counts = [list(centre) for centre in centres], list(seen)
    for row, place in zip(rows, nearest, strict=True):
        counts[place] += 1
        rate = 1 / counts[place]
        moved[place] = [(1 - rate) * old + rate * new for old, new in zip(moved[place], row, strict=True)]
    return moved, counts


def encode(
    image: Array, mean: Array, matrix: Array, centres: Array, *, side: int, stride: int
) -> list[float]:
    """Quadrant by quadrant, centre by centre."""
    size = image.shape[1]
    places = range((size - side) // stride + 1)
    middle = len(places) // 2
    sums = [[0.0] * len(centres) for _ in range(4)]
    for y in places:
        for x in places:
            values = np.array(contrast_normalised(patch(image, y * stride, x * stride, side)))
            row = (values - mean) @ matrix
            distances = [math.dist(row, centre) for centre in centres]
            average = sum(distances) / len(distances)
            quadrant = 2 * (y >= middle) + (x >= middle)
            for place, distance in enumerate(distances):
                sums[quadrant][place] += max(0.0, average - distance)
    return [math.sqrt(value) for quadrant in sums for value in quadrant]
