"""LARS for one tensor at a time, in plain numbers."""

import math


def lars_step(
    weight: list[float],
    gradient: list[float],
    momentum: list[float],
    *,
    rate: float,
    beta: float,
    decay: float,
    trust: float,
) -> tuple[list[float], list[float]]:
    """One step; returns the new weight and momentum."""
    size = math.sqrt(sum(w * w for w in weight))
    slope = math.sqrt(sum(g * g for g in gradient))
    if size > 0 and slope > 0:
        scale = trust * size / (slope + decay * size + 1e-8)
        gradient = [scale * (g + decay * w) for w, g in zip(weight, gradient, strict=True)]
    momentum = [beta * m + g for m, g in zip(momentum, gradient, strict=True)]
    return [w - rate * m for w, m in zip(weight, momentum, strict=True)], momentum
