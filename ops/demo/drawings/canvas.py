"""Canvas: one square picture in the making, with its random numbers, coordinates and paints.

Every painter takes a `Canvas` and gives back float32 [S, S, 3] in about [0, 1].
"""

# S side of the picture in pixels   n number of colours

import colorsys
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]
"""float32; the types of numpy do not follow it through every operation."""


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Floats, Floats]:
    """Coordinates of pixel centres, from -1 (left, top) to 1 (right, bottom); shared, so never written to."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x, y = (np.ascontiguousarray(axis) for axis in np.meshgrid(line, line))
    x.flags.writeable = False
    y.flags.writeable = False
    return x, y


class Canvas:
    """One picture in the making.

    Args:
        size: S, pixels; >= 8.
        rng: where every choice comes from.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.x, self.y = _grid(size)
        self.pixel = 2.0 / size
        self.between = rng.uniform

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(self.rng.random()) < probability

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high, endpoint=True))

    def colour(self, *ranges: float | tuple[float, float]) -> Floats:
        """A colour [3] of hue, saturation and value: each a number, or (low, high) to draw one from.

        A hue may be any number, 1 is a full turn; saturation and value are cut to [0, 1].
        """
        hue, *rest = (self.between(*part) if isinstance(part, tuple) else part for part in ranges)
        saturation, value = (min(max(part, 0.0), 1.0) for part in rest)
        return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)

    def palette(self, n: int) -> Floats:
        """Colours [n, 3] that go together and differ in lightness, in random order."""
        hue, spread = self.between(0, 1), self.between(0.03, 0.28) if self.chance(0.6) else 0.5
        lights = [(place + self.between(0.15, 0.85)) / n for place in range(n)]
        self.rng.shuffle(lights)
        return np.stack([
            self.colour(
                hue + spread * place / max(1, n - 1) + self.between(-0.04, 0.04),
                self.between(0.1, 0.9) * (1.1 - 0.5 * light),
                0.12 + 0.86 * light,
            )
            for place, light in enumerate(lights)
        ])  # fmt: skip

    def noise(self, columns: int, rows: int | None = None) -> Floats:
        """Smooth noise [S, S] in about [-1, 1], one random value a cell of a columns x rows grid."""
        rows = columns if rows is None else rows
        cells = self.rng.random((rows + 2, columns + 2), dtype=np.float32) * 2 - 1
        box = (1.0, 1.0, columns + 1.0, rows + 1.0)
        return np.asarray(Image.fromarray(cells).resize((self.size,) * 2, Image.Resampling.BICUBIC, box))

    def fractal(self, columns: int, octaves: int = 4, gain: float = 0.5) -> Floats:
        """Noise on several scales [S, S], each twice as fine and `gain` times as strong as the one before."""
        scales = (gain**octave * self.noise(columns << octave) for octave in range(octaves))
        return sum(scales, np.zeros_like(self.x))

    def rotated(self, low: float = 0.0, high: float = math.pi) -> tuple[Floats, Floats]:
        """Coordinates turned by an angle drawn from [low, high), radians."""
        turn = self.between(low, high)
        cos, sin = math.cos(turn), math.sin(turn)
        return self.x * cos + self.y * sin, self.y * cos - self.x * sin

    def cover(self, distance: Floats, softness: float = 1.0) -> Floats:
        """Share of each pixel inside a shape: `distance` to its edge is negative inside; no jagged edges."""
        share: Floats = np.clip(0.5 - distance * (1 / (self.pixel * softness)), 0, 1)
        return share

    def finish(self, picture: Floats) -> NDArray[np.uint8]:
        """Light, vignette, tint and grain, then uint8 [S, S, 3]."""
        light = self.rotated(0, 2 * math.pi)[0] * self.between(0, 0.22) + np.float32(1)
        light *= 1 - self.between(0, 0.14) * (self.x * self.x + self.y * self.y)
        light *= self.between(0.82, 1.12)
        tint = np.array([self.between(0.93, 1.05), 1.0, self.between(0.93, 1.05)], dtype=np.float32)
        picture = picture * (light[..., None] * tint)
        grain = self.between(0.002, 0.018)
        picture += grain * self.rng.standard_normal((self.size, self.size, 1), dtype=np.float32)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def mix(under: Floats, over: Floats, share: Floats | float) -> Floats:
    """`over` laid on `under` with `share` in [0, 1], [S, S] or a number; both are colours [3] or pictures."""
    return under + (over - under) * (share if isinstance(share, float) else share[..., None])


def shaded(picture: Floats, strength: float, pattern: Floats) -> Floats:
    """A colour [3] or picture, lighter and darker by `strength` times a pattern [S, S] in about [-1, 1]."""
    return picture * (1 + strength * pattern)[..., None]


def smooth(low: float, high: float, value: Floats) -> Floats:
    """0 below `low`, 1 above `high`, a soft step between."""
    step: Floats = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return step * (step * (3 - 2 * step))
