"""Painters of one to three things of a kind on a quiet ground, each with its shadow."""

import math
from collections.abc import Callable

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, mix, shaded, smooth

# Both take coordinates [S, S] whose unit is the size of the thing, and whose origin is its middle.
_Outline = Callable[[Floats, Floats], Floats]
"""Distance [S, S] to its edge, negative inside."""
_Paint = Callable[[Floats, Floats], Floats]
"""Its colour [3], or [S, S, 3]."""


def _things(
    c: Canvas, ground: Floats, outline: _Outline, paint: _Paint, *, foot: float = 0.12, flat: float = 1.0
) -> Floats:
    """The things on their ground; a shadow has their outline, `foot` further down and `flat` times as low."""
    number = 1 if c.chance(0.55) else c.whole(2, 3)
    size, reach = (c.between(0.4, 0.7), 0.2) if number == 1 else (c.between(0.26, 0.42), 0.45)
    for down in np.sort(c.rng.uniform(-reach, reach, number).astype(np.float32)):
        x, y = (c.x - c.between(-reach, reach)) / size, (c.y - down) / size
        shadow = smooth(-0.25, 0.2, outline(x - 0.1, (y - foot) * flat))
        ground = shaded(ground, -0.45, 1 - shadow)
        ground = mix(ground, paint(x, y), c.cover(outline(x, y) * size))
    return ground


def ball(c: Canvas) -> Floats:
    """Lit balls on a table before a wall."""
    wall, table = c.palette(2)
    ground = mix(wall, table, smooth(0, 0.12, c.y - c.between(-0.35, 0.35)))
    light_x, light_y, sharp = c.between(-0.7, 0.7), c.between(-0.8, -0.4), c.between(14, 40)

    def lit(x: Floats, y: Floats) -> Floats:
        towards_viewer = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
        facing: Floats = np.clip(x * light_x + y * light_y + 0.65 * towards_viewer, 0, 1)
        colour = c.colour((0, 1), (0.5, 0.95), (0.6, 1.0))
        return shaded(colour, 0.9, facing - 0.9) + 0.7 * (facing**sharp)[..., None]

    return _things(c, ground, lambda x, y: np.hypot(x, y) - 1, lit, foot=1.0, flat=3.4)


def polygon(c: Canvas) -> Floats:
    """Flat triangles, squares, pentagons or hexagons."""
    colours = iter(c.palette(5))
    ground, other = next(colours), next(colours)
    ground = mix(ground, mix(ground, other, 0.35), smooth(-1.5, 1.5, c.rotated()[0]))
    sides = c.whole(3, 6)
    normals = c.between(0, 2 * math.pi) + 2 * math.pi * np.arange(sides) / sides

    def outline(x: Floats, y: Floats) -> Floats:
        farthest: Floats = np.max([x * math.cos(angle) + y * math.sin(angle) for angle in normals], axis=0)
        return farthest - np.float32(math.cos(math.pi / sides))

    return _things(c, ground, outline, lambda *_: next(colours))


def flower(c: Canvas) -> Floats:
    """Flowers with petals around a round heart, before blurred leaves."""
    hue, petal_hue = c.between(0.24, 0.4), c.between(0.55, 1.17)
    leaves = smooth(-0.8, 0.8, c.fractal(3, octaves=3))
    ground = mix(c.colour(hue, 0.7, (0.12, 0.3)), c.colour(hue - 0.05, 0.6, (0.4, 0.75)), leaves)
    colour = c.colour(petal_hue, (0.05, 0.85), (0.8, 1.0))
    tip = c.colour((petal_hue - 0.08, petal_hue + 0.08), (0.4, 0.9), (0.55, 0.95))
    heart, heart_size = c.colour((0.08, 0.15), 0.85, (0.35, 0.95)), c.between(0.2, 0.3)
    petals, turn = c.whole(5, 9), c.between(0, 6.3)

    def fold(x: Floats, y: Floats) -> Floats:
        return np.abs(np.cos((np.arctan2(y, x) + turn) * (petals / 2)))

    def petal(x: Floats, y: Floats) -> Floats:
        radius = np.hypot(x, y)
        leaf = shaded(mix(colour, tip, smooth(0.1, 1, radius)), 0.28, fold(x, y) - 1)
        return mix(leaf, heart, smooth(0.04, -0.04, radius - heart_size))

    return _things(c, ground, lambda x, y: np.hypot(x, y) - 0.42 - 0.58 * np.sqrt(fold(x, y)), petal)
