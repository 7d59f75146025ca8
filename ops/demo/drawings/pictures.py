"""An endless, seeded stream of drawn images of several kinds, for the demo and for tests.

The kind is a label for judging clusters afterwards; no learner ever sees it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ops.demo.drawings import scenes, surfaces, things
from ops.demo.drawings.canvas import Canvas, Floats

_PAINTERS: tuple[Callable[[Canvas], Floats], ...] = (
    surfaces.stripes, surfaces.checker, surfaces.dots, surfaces.wood, surfaces.marble, surfaces.bricks,
    surfaces.tartan, surfaces.stones, surfaces.rings, surfaces.gradient,
    things.ball, things.polygon, things.flower,
    scenes.landscape, scenes.sea, scenes.night, scenes.city, scenes.forest,
)  # fmt: skip
PAINTERS = {painter.__name__: painter for painter in _PAINTERS}
KINDS: tuple[str, ...] = tuple(PAINTERS)
"""Names of the kinds; the place in this tuple is the kind's label."""

_LARGEST_KEY = 2**64 - 1


def draw(seed: int, number: int, size: int) -> tuple[NDArray[np.uint8], str]:
    """Draw one picture of the endless stream.

    Args:
        seed: which stream; 0 .. 2^64 - 1.
        number: place in the stream; 0 .. 2^64 - 1. Any order, any process: nothing is remembered.
        size: side, pixels; >= 8.

    Returns:
        The picture, uint8 [size, size, 3] RGB, and its kind, one of `KINDS`, each as likely as the others.

    Raises:
        ValueError: an argument out of range.
    """
    if not (0 <= seed <= _LARGEST_KEY and 0 <= number <= _LARGEST_KEY):
        raise ValueError(f"seed and number must be in 0 .. 2^64 - 1, got {seed} and {number}")
    if size < 8:
        raise ValueError(f"size must be >= 8 pixels, got {size}")
    # A counter-based generator: picture 10 million costs the same as picture 0.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return draw_kind(kind, rng, size), kind


def draw_kind(kind: str, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw one picture of a given kind, uint8 [size, size, 3] RGB.

    Raises:
        ValueError: no such kind.
    """
    if kind not in PAINTERS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    canvas = Canvas(size, rng)
    return canvas.finish(PAINTERS[kind](canvas))
