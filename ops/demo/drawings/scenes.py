"""Painters of places: skies, hills, water, streets and trees."""

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, mix, shaded, smooth
from ops.demo.drawings.surfaces import tiled

_WHITE = np.ones(3, dtype=np.float32)
_Range = float | tuple[float, float]
# Colours at the top and at the horizon, as `Canvas.colour` takes them: by day (twice as often), at dusk, and
# under clouds.
_DAY = ((0.54, 0.62), (0.45, 0.75), (0.6, 0.9)), ((0.5, 0.6), (0.05, 0.3), (0.85, 1.0))
_DUSK = ((0.6, 0.82), (0.4, 0.7), (0.3, 0.6)), ((-0.04, 0.12), (0.5, 0.85), (0.85, 1.0))
_CLOUDS = ((0.0, 1.0), (0.03, 0.15), (0.5, 0.7)), ((0.0, 1.0), (0.02, 0.12), (0.75, 0.95))
_NIGHT = ((0.56, 0.8), 0.8, (0.03, 0.14)), ((0.58, 0.84), 0.65, (0.15, 0.4))
_CITY_LIGHTS = ((0.58, 0.95), 0.7, (0.06, 0.2)), ((0.68, 1.05), (0.4, 0.8), (0.35, 0.75))


def _sky(c: Canvas, *hours: tuple[tuple[_Range, ...], tuple[_Range, ...]]) -> tuple[Floats, Floats, Floats]:
    """A sky [S, S, 3] of one of the hours, and its colours at the top and at the horizon."""
    top, low = (c.colour(*part) for part in hours[c.whole(0, len(hours) - 1)])
    return mix(top, low, smooth(-1.1, 0.5, c.y)), top, low


def _disc(c: Canvas, sky: Floats, x: float, y: float, colour: Floats) -> Floats:
    """The sun or the moon with a glow."""
    distance = np.hypot(c.x - x, c.y - y)
    sky = mix(sky, colour, np.exp(-distance * c.between(2.5, 5)) * 0.6)
    return mix(sky, colour, c.cover(distance - c.between(0.07, 0.17)))


def _ridge(c: Canvas, rough: float = 0.5) -> Floats:
    """Outline [S] of hills, in about [-1, 1]."""
    columns = c.whole(2, 4)
    heights: Floats = np.sum(
        [rough**octave * c.noise(columns << octave, 1)[0] for octave in range(5)], axis=0
    )
    return heights


def landscape(c: Canvas) -> Floats:
    """Ranges of hills, the far ones in haze, sometimes with snow."""
    picture, _, low = _sky(c, _DAY, _DAY, _DUSK, _CLOUDS)
    if c.chance(0.6):
        picture = _disc(c, picture, c.between(-0.8, 0.8), c.between(-0.8, -0.2), mix(low, _WHITE, 0.75))
    hue = c.between(0.2, 0.4) if c.chance(0.65) else c.between(0.02, 0.14)
    base, rough, snow = c.between(-0.35, 0.05), c.between(0.4, 0.65), c.chance(0.4)
    for near in np.linspace(0, 1, c.whole(3, 5)).tolist():
        outline = base + (0.95 - base) * near * 0.85 - (0.4 - 0.2 * near) * _ridge(c, rough - 0.15 * near)
        ground = c.colour((hue - 0.03, hue + 0.03), (0.4, 0.7), (0.25, 0.6))
        ground = mix(ground, low, 0.75 * (1 - near) ** 1.3)
        slope = np.clip(np.gradient(outline).astype(np.float32) / c.pixel, -1, 1)
        below = c.y - outline
        if snow and near == 0:
            ground = mix(ground, _WHITE, c.cover(below - 0.2 - 0.14 * c.noise(10), softness=2))
        ground = shaded(ground, 0.2, slope * np.exp(-below * 4) + 0.4 * c.noise(14))
        picture = mix(picture, ground, c.cover(-below))
    return picture


def sea(c: Canvas) -> Floats:
    """Water to the horizon under the sun, with waves that shrink with distance, and now and then a sail."""
    picture, top, low = _sky(c, _DAY, _DAY, _DUSK, _CLOUDS)
    horizon, sun_x = c.between(-0.4, 0.15), c.between(-0.7, 0.7)
    picture = _disc(c, picture, sun_x, horizon - c.between(0.12, 0.6), mix(low, _WHITE, 0.75))
    depth = np.clip((c.y - horizon) / np.float32(1 - horizon), 0, 1)
    near = c.colour((0.45, 0.62), (0.5, 0.85), (0.2, 0.55))
    water = mix(mix(near, mix(top, low, 0.4), 0.65), near, np.sqrt(depth))
    waves = np.sin(1 / (depth + 0.06) * c.between(5, 9) + c.noise(4, 12) * 2.2 + c.x * c.between(-2, 2))
    water = shaded(water, c.between(0.1, 0.24), waves * np.sqrt(depth + 0.1))
    path = np.exp(-(((c.x - sun_x) / (0.12 + 0.3 * depth)) ** 2)) * c.between(0.4, 0.8)
    water = mix(water, mix(low, _WHITE, 0.6), np.clip(path * (0.45 + 0.55 * waves), 0, 1))
    picture = mix(picture, water, c.cover(horizon - c.y))
    if c.chance(0.35):
        size, place = c.between(0.15, 0.32), c.between(-0.7, 0.7)
        up = (horizon + 0.06 - c.y) / size
        sail = np.maximum(np.abs(c.x - place) / size - (1 - up) * 0.5, -up)
        picture = mix(picture, c.colour((0, 1), (0, 0.5), 0.95), c.cover(sail * size))
    return picture


def night(c: Canvas) -> Floats:
    """Stars, the moon or the milky way above a dark ridge."""
    picture, top, low = _sky(c, _NIGHT)
    if c.chance(0.5):
        band = np.exp(-((c.rotated()[1] / c.between(0.2, 0.4)) ** 2))
        cloud = smooth(-0.7, 0.9, c.fractal(3, octaves=4, gain=0.6))
        picture = mix(picture, mix(low, _WHITE, 0.5), band * cloud * 0.55)
    limit = np.float32(1 - c.between(0.012, 0.05) * min(1.0, 64 / c.size))
    stars = (c.rng.random((c.size, c.size), dtype=np.float32) - limit) / (1 - limit)
    for _ in range(c.whole(3, 10)):
        distance = np.hypot(c.x - c.between(-1, 1), c.y - c.between(-1, 0.6))
        stars = np.maximum(stars, np.exp(-distance * c.between(26, 60)))
    picture = mix(picture, _WHITE, np.clip(stars, 0, 1))
    if c.chance(0.45):
        x, y = c.between(-0.65, 0.65), c.between(-0.7, -0.1)
        picture = _disc(c, picture, x, y, c.colour((0.08, 0.16), 0.15, 1.0))
        shadow = np.hypot(c.x - x - c.between(-0.3, 0.3), c.y - y + 0.02) - 0.15
        picture = mix(picture, mix(top, low, 0.3), c.cover(shadow, softness=3))
    ridge = c.between(0.55, 0.95) - 0.16 * _ridge(c)
    return mix(picture, 0.15 * top, c.cover(ridge - c.y))


def city(c: Canvas) -> Floats:
    """Two rows of houses against the sky, with lit windows when it is dark."""
    dark = c.chance(0.5)
    picture, _, low = _sky(c, _CITY_LIGHTS) if dark else _sky(c, _DAY, _DAY, _DUSK, _CLOUDS)
    hue, lit_share = c.between(0, 1), 0.45 if dark else 0.8
    for near, value in enumerate((0.24, 0.12) if dark else (0.68, 0.42)):
        edges = np.cumsum(c.rng.uniform(0.2, 0.46, 14)).astype(np.float32) - c.between(1.1, 1.4)
        house = np.searchsorted(edges, c.x[0])
        tops = c.rng.uniform(-0.7, 0.3, 15).astype(np.float32)[house] + np.float32(0.42 * near)
        wall = mix(c.colour(hue, (0.08, 0.35), value), low, 0.35 * (1 - near))
        u, v, column, row = tiled(c.x / c.between(0.085, 0.12), c.y / c.between(0.1, 0.17))
        lit = c.rng.random(1024, dtype=np.float32)[(31 * row + column).astype(np.int64) % 1024] < lit_share
        pane = lit & (np.maximum(np.abs(u), np.abs(v)) < 0.29) & (c.y > tops + 0.05)
        glass = c.colour((0.09, 0.16), (0.3, 0.7), 1.0) if dark else c.colour(0.58, 0.3, (0.25, 0.9))
        walls = shaded(wall, 1.0, c.rng.uniform(-0.25, 0.2, 15).astype(np.float32)[house])
        picture = mix(picture, mix(walls, glass, pane * np.float32(0.85)), c.cover(tops - c.y))
    return picture


def forest(c: Canvas) -> Floats:
    """Trunks one behind the other in coloured mist, with leaves above and ground below."""
    hue = c.between(0.18, 0.45) if c.chance(0.7) else c.between(0.03, 0.14)
    mist, floor = c.colour(hue, (0.15, 0.5), (0.65, 0.98)), c.colour(hue - 0.06, (0.4, 0.7), (0.2, 0.5))
    bark = c.colour((0.02, 0.1), (0.2, 0.6), (0.06, 0.25))
    picture = mix(mist * 0.85, mist, smooth(-1, 0.4, c.y))
    for near, most in ((1 / 3, 5), (2 / 3, 5), (1.0, 3)):
        foot = c.between(0.1, 0.25) + 0.55 * near
        ground = shaded(mix(mist, floor, 0.35 + 0.6 * near), 0.12, c.noise(14, 20))
        picture = mix(picture, ground, c.cover(np.float32(foot - 0.12) - c.y, softness=4))
        for _ in range(c.whole(most - 2, most)):
            middle = c.between(-1, 1) + c.between(-0.12, 0.12) * c.y
            width = (c.between(0.025, 0.05) + 0.1 * near * near * c.between(0.6, 1.2)) * (1 + 0.12 * c.y)
            trunk = np.maximum(np.abs(c.x - middle) - width, c.y - foot)
            picture = mix(picture, mix(mist, bark, 0.3 + 0.65 * near), c.cover(trunk))
    crown = smooth(0.0, 0.35, c.fractal(6, octaves=3, gain=0.7) * 0.6 - c.y - c.between(0.35, 0.75))
    return mix(picture, shaded(c.colour(hue, (0.55, 0.85), (0.2, 0.55)), 0.35, c.noise(18)), crown)
