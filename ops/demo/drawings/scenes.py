"""Painters of places: skies, hills, water, streets and trees."""

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, hsv, mix, shaded, smooth

_WHITE = np.ones(3, dtype=np.float32)
_SNOW = np.array([0.95, 0.96, 1.0], dtype=np.float32)


def _sky(c: Canvas) -> tuple[Floats, Floats, Floats]:
    """A sky [S, S, 3] of some hour of the day, with its colours at the top and at the horizon."""
    hour = c.between(0, 1)
    if hour < 0.5:
        top = c.colour((0.54, 0.62), (0.45, 0.75), (0.6, 0.9))
        low = c.colour((0.5, 0.6), (0.05, 0.3), (0.85, 1.0))
    elif hour < 0.8:
        top = c.colour((0.6, 0.82), (0.4, 0.7), (0.3, 0.6))
        low = c.colour((-0.04, 0.12), (0.5, 0.85), (0.85, 1.0))
    else:
        top = c.colour((0, 1), (0.03, 0.15), (0.5, 0.7))
        low = c.colour((0, 1), (0.02, 0.12), (0.75, 0.95))
    return mix(top, low, smooth(-1.1, 0.5, c.y)), top, low


def _sun(c: Canvas, picture: Floats, x: float, y: float, low: Floats) -> Floats:
    """A disc with a glow."""
    distance = c.distance(x, y)
    white = mix(low, _WHITE, 0.75)
    picture = mix(picture, white, np.exp(-distance * c.between(2.5, 5)) * 0.6)
    return mix(picture, white, c.cover(distance - c.between(0.07, 0.17)))


def landscape(c: Canvas) -> Floats:
    """Ranges of hills, the far ones in haze, sometimes with snow."""
    picture, _, low = _sky(c)
    if c.chance(0.6):
        picture = _sun(c, picture, c.between(-0.8, 0.8), c.between(-0.8, -0.2), low)
    layers = c.whole(3, 5)
    hue = c.between(0.2, 0.4) if c.chance(0.65) else c.between(0.02, 0.14)
    base, rough = c.between(-0.35, 0.05), c.between(0.35, 0.6)
    snow = c.chance(0.4)
    for layer in range(layers):
        near = layer / (layers - 1)
        height = (0.34 - 0.18 * near) * c.skyline(c.whole(2, 4), gain=rough - 0.15 * near)
        outline = (base + (0.95 - base) * near * 0.85) - height
        below = c.y - outline
        ground = hsv(hue + c.between(-0.03, 0.03), c.between(0.4, 0.7), c.between(0.25, 0.6))
        ground = mix(ground, low, 0.75 * (1 - near) ** 1.3)
        slope = np.clip(np.gradient(outline).astype(np.float32) / c.pixel, -1, 1)
        shade = (1 + 0.2 * (slope * np.exp(-below * 4)) + 0.08 * c.noise(14))[..., None]
        body = ground * shade
        if snow and layer == 0:
            line = (base + c.between(-0.3, -0.1)) + 0.14 * c.noise(10)
            body = mix(body, _SNOW * shade, c.cover(c.y - line, softness=2))
        picture = mix(picture, body, c.cover(-below))
    return picture


def sea(c: Canvas) -> Floats:
    """Water to the horizon under the sun, with waves that shrink with distance, and now and then a sail."""
    picture, top, low = _sky(c)
    horizon, sun_x = c.between(-0.4, 0.15), c.between(-0.7, 0.7)
    picture = _sun(c, picture, sun_x, horizon - c.between(0.12, 0.6), low)
    depth = np.clip((c.y - horizon) / np.float32(1 - horizon), 0, 1)
    near = c.colour((0.45, 0.62), (0.5, 0.85), (0.2, 0.55))
    water = mix(mix(near, mix(top, low, 0.4), 0.65), near, np.sqrt(depth))
    bend = c.noise(4, 12)
    waves = np.sin(1 / (depth + 0.06) * c.between(5, 9) + bend * 2.2 + c.x * c.between(-2, 2))
    water = water * (1 + c.between(0.1, 0.24) * waves * np.sqrt(depth + 0.1))[..., None]
    path = np.exp(-(((c.x - sun_x) / (0.12 + 0.3 * depth)) ** 2))
    sparkle = np.clip(path * (0.45 + 0.55 * waves), 0, 1) * c.between(0.4, 0.8)
    water = mix(water, mix(low, _WHITE, 0.6), sparkle)
    picture = mix(picture, water, c.cover(horizon - c.y))
    if c.chance(0.35):
        size, place = c.between(0.15, 0.32), c.between(-0.7, 0.7)
        up = (horizon + 0.06 - c.y) / size
        sail = np.maximum(np.abs(c.x - place) / size - (1 - up) * 0.5, -up)
        picture = mix(picture, c.colour((0, 1), (0, 0.5), 0.95), c.cover(sail * size))
    return picture


def night(c: Canvas) -> Floats:
    """Stars, the moon or the milky way above a dark ridge."""
    hue = c.between(0.56, 0.8)
    picture = mix(
        c.colour(hue, 0.85, (0.03, 0.14)), c.colour(hue + 0.04, 0.65, (0.15, 0.4)), smooth(-1, 1.2, c.y)
    )
    if c.chance(0.5):
        _, across = c.rotated()
        band = np.exp(-((across / c.between(0.2, 0.4)) ** 2))
        cloud = smooth(-0.7, 0.9, c.fractal(3, octaves=4, gain=0.6))
        picture = mix(picture, hsv(hue + c.between(-0.1, 0.12), 0.35, 0.75), band * cloud * 0.55)
    stars = c.rng.random((c.size, c.size), dtype=np.float32)
    limit = np.float32(1 - c.between(0.012, 0.05) * min(1.0, 64 / c.size))
    picture = picture + np.clip((stars - limit) / (1 - limit), 0, 1)[..., None] * 0.95
    for _ in range(c.whole(3, 10)):
        distance = c.distance(c.between(-1, 1), c.between(-1, 0.6))
        picture = picture + np.exp(-distance * c.between(26, 60))[..., None]
    if c.chance(0.45):
        x, y, size = c.between(-0.65, 0.65), c.between(-0.7, -0.1), c.between(0.14, 0.3)
        distance = c.distance(x, y)
        moon = c.colour((0.08, 0.16), 0.15, 1.0) * (0.92 + 0.1 * c.noise(9))[..., None]
        picture = mix(picture, moon, np.exp(-distance * 4.0) * 0.4)
        dark = size * 0.9 - c.distance(x + size * c.between(-1.6, 1.6), y - 0.1 * size)
        picture = mix(picture, moon, c.cover(distance - size) * c.cover(dark, softness=3))
    ridge = c.between(0.55, 0.95) - 0.14 * c.skyline(3)
    return mix(picture, hsv(hue, 0.6, 0.025), c.cover(ridge - c.y))


def city(c: Canvas) -> Floats:
    """Two rows of houses against the sky, with lit windows when it is dark."""
    dark = c.chance(0.5)
    if dark:
        hue = c.between(0.58, 0.95)
        low = c.colour(hue + 0.1, (0.4, 0.8), (0.35, 0.75))
        picture = mix(c.colour(hue, 0.7, (0.06, 0.2)), low, smooth(-1, 0.7, c.y))
    else:
        picture, _, low = _sky(c)
    tone_hue = c.between(0, 1)
    for row in range(2):
        edges = np.cumsum(c.rng.uniform(0.2, 0.46, 14)).astype(np.float32) - c.between(1.1, 1.4)
        house = np.searchsorted(edges, c.x[0])
        tops = (c.rng.uniform(-0.7, 0.3, 15).astype(np.float32) + 0.42 * row)[house]
        tones = c.rng.uniform(0.75, 1.2, 15).astype(np.float32)[house]
        value = (0.12 if row else 0.24) if dark else (0.42 if row else 0.68)
        wall = mix(c.colour(tone_hue, (0.08, 0.35), value), low, 0.35 * (1 - row))
        u, v = c.x / c.between(0.085, 0.12), c.y / c.between(0.1, 0.17)
        lit = c.rng.random((64, 64), dtype=np.float32)
        chosen = lit[np.floor(v).astype(np.int64) % 64, np.floor(u).astype(np.int64) % 64]
        pane = (
            (np.abs(u % 1 - 0.5) < 0.29) & (np.abs(v % 1 - 0.5) < 0.29) & (chosen < (0.45 if dark else 0.8))
        )
        pane &= c.y > tops + 0.05
        glass = c.colour((0.09, 0.16), (0.3, 0.7), 1.0) if dark else c.colour(0.58, 0.3, (0.25, 0.9))
        body = mix(wall * tones[None, :, None], glass, pane.astype(np.float32) * 0.85)
        picture = mix(picture, body, c.cover(tops - c.y))
    return picture


def forest(c: Canvas) -> Floats:
    """Trunks one behind the other in coloured mist, with leaves above and ground below."""
    hue = c.between(0.18, 0.45) if c.chance(0.7) else c.between(0.03, 0.14)
    mist = c.colour(hue, (0.15, 0.5), (0.65, 0.98))
    floor = c.colour(hue - 0.06, (0.4, 0.7), (0.2, 0.5))
    picture = mix(mist * 0.85, mist, smooth(-1, 0.4, c.y))
    bark = c.colour((0.02, 0.1), (0.2, 0.6), (0.06, 0.25))
    for layer in range(3):
        near = (layer + 1) / 3
        foot = np.float32(c.between(0.1, 0.25) + 0.55 * near)
        ground = shaded(mix(mist, floor, 0.35 + 0.6 * near), 0.12, c.noise(14, 20))
        picture = mix(picture, ground, c.cover(foot - 0.12 - c.y, softness=4))
        colour = mix(mist, bark, 0.3 + 0.65 * near)
        for _ in range(c.whole(3, 5) if layer < 2 else c.whole(1, 3)):
            middle = c.between(-1, 1) + c.between(-0.12, 0.12) * c.y
            width = c.between(0.025, 0.05) + 0.1 * near * near * c.between(0.6, 1.2)
            trunk = np.maximum(np.abs(c.x - middle) - width * (1 + 0.12 * c.y), c.y - foot)
            picture = mix(picture, colour, c.cover(trunk))
    crown = smooth(0.0, 0.35, c.fractal(6, octaves=3, gain=0.7) * 0.6 - c.y - c.between(0.35, 0.75))
    leaves = shaded(c.colour(hue, (0.55, 0.85), (0.2, 0.55)), 0.35, c.noise(18))
    return mix(picture, leaves, crown)
