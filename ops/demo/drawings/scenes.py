"""Painters of places: skies, hills, water, streets and trees."""

import math

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, hsv, mix, smooth

_SNOW = np.array([0.95, 0.96, 1.0], dtype=np.float32)


def _sky(canvas: Canvas) -> tuple[Floats, Floats, Floats]:
    """A sky [S, S, 3] of some hour of the day, with its colours at the top and at the horizon."""
    hour = canvas.between(0, 1)
    if hour < 0.5:
        top = hsv(canvas.between(0.54, 0.62), canvas.between(0.45, 0.75), canvas.between(0.6, 0.9))
        low = hsv(canvas.between(0.5, 0.6), canvas.between(0.05, 0.3), canvas.between(0.85, 1.0))
    elif hour < 0.8:
        top = hsv(canvas.between(0.6, 0.82), canvas.between(0.4, 0.7), canvas.between(0.3, 0.6))
        low = hsv(canvas.between(-0.04, 0.12), canvas.between(0.5, 0.85), canvas.between(0.85, 1.0))
    else:
        top = hsv(canvas.between(0, 1), canvas.between(0.03, 0.15), canvas.between(0.5, 0.7))
        low = hsv(canvas.between(0, 1), canvas.between(0.02, 0.12), canvas.between(0.75, 0.95))
    return mix(top, low, smooth(-1.1, 0.5, canvas.y)), top, low


def _sun(canvas: Canvas, picture: Floats, x: float, y: float, low: Floats) -> Floats:
    """A disc with a glow."""
    distance = np.hypot(canvas.x - np.float32(x), canvas.y - np.float32(y))
    white = mix(low, np.ones(3, dtype=np.float32), 0.75)
    glow = np.exp(-distance * np.float32(canvas.between(2.5, 5)))
    picture = mix(picture, white, glow * np.float32(0.6))
    return mix(picture, white, canvas.cover(distance - np.float32(canvas.between(0.07, 0.17))))


def landscape(canvas: Canvas) -> Floats:
    """Ranges of hills, the far ones in haze, sometimes with snow."""
    picture, _, low = _sky(canvas)
    if canvas.chance(0.6):
        picture = _sun(canvas, picture, canvas.between(-0.8, 0.8), canvas.between(-0.8, -0.2), low)
    layers = canvas.whole(3, 5)
    hue = canvas.between(0.2, 0.4) if canvas.chance(0.65) else canvas.between(0.02, 0.14)
    base, rough = canvas.between(-0.35, 0.05), canvas.between(0.35, 0.6)
    snow = canvas.chance(0.4)
    for layer in range(layers):
        near = layer / (layers - 1)
        height = np.float32(0.34 - 0.18 * near) * canvas.skyline(
            canvas.whole(2, 4), octaves=5, gain=rough - 0.15 * near
        )
        outline = np.float32(base + (0.95 - base) * near * 0.85) - height
        below = canvas.y - outline[None, :]
        ground = hsv(hue + canvas.between(-0.03, 0.03), canvas.between(0.4, 0.7), canvas.between(0.25, 0.6))
        ground = mix(ground, low, 0.75 * (1 - near) ** 1.3)
        slope = np.gradient(outline).astype(np.float32) / np.float32(canvas.pixel)
        side = np.clip(slope, -1, 1)[None, :] * np.exp(-below * np.float32(4))
        shade = 1 + np.float32(0.2) * side[..., None] + np.float32(0.08) * canvas.noise(14)[..., None]
        body = ground * shade
        if snow and layer == 0:
            line = np.float32(base + canvas.between(-0.3, -0.1)) + np.float32(0.14) * canvas.noise(10)
            body = mix(body, _SNOW * shade, canvas.cover(canvas.y - line, softness=2))
        picture = mix(picture, body, canvas.cover(-below))
    return picture


def sea(canvas: Canvas) -> Floats:
    """Water to the horizon under the sun, with waves that shrink with distance, and now and then a sail."""
    picture, top, low = _sky(canvas)
    horizon = canvas.between(-0.4, 0.15)
    sun_x = canvas.between(-0.7, 0.7)
    picture = _sun(canvas, picture, sun_x, horizon - canvas.between(0.12, 0.6), low)
    depth = np.clip((canvas.y - np.float32(horizon)) / np.float32(1 - horizon), 0, 1)
    near = hsv(canvas.between(0.45, 0.62), canvas.between(0.5, 0.85), canvas.between(0.2, 0.55))
    water = mix(mix(near, mix(top, low, 0.4), 0.65), near, np.sqrt(depth))
    far = 1 / (depth + np.float32(0.06))
    bend = canvas.noise(4, 12)
    waves = np.sin(
        far * np.float32(canvas.between(5, 9))
        + bend * np.float32(2.2)
        + canvas.x * np.float32(canvas.between(-2, 2))
    )
    water = (
        water
        * (1 + np.float32(canvas.between(0.1, 0.24)) * waves * np.sqrt(depth + np.float32(0.1)))[..., None]
    )
    path = np.exp(-(((canvas.x - np.float32(sun_x)) / (np.float32(0.12) + np.float32(0.3) * depth)) ** 2))
    sparkle = np.clip(path * (np.float32(0.45) + np.float32(0.55) * waves), 0, 1) * np.float32(
        canvas.between(0.4, 0.8)
    )
    water = mix(water, mix(low, np.ones(3, dtype=np.float32), 0.6), sparkle)
    picture = mix(picture, water, canvas.cover(np.float32(horizon) - canvas.y))
    if canvas.chance(0.35):
        size, place = canvas.between(0.15, 0.32), canvas.between(-0.7, 0.7)
        up = (np.float32(horizon + 0.06) - canvas.y) / np.float32(size)
        sail = np.maximum(
            np.abs(canvas.x - np.float32(place)) / np.float32(size) - (1 - up) * np.float32(0.5), -up
        )
        picture = mix(
            picture,
            hsv(canvas.between(0, 1), canvas.between(0, 0.5), 0.95),
            canvas.cover(sail * np.float32(size)),
        )
    return picture


def night(canvas: Canvas) -> Floats:
    """Stars, the moon or the milky way above a dark ridge."""
    hue = canvas.between(0.56, 0.8)
    picture = mix(
        hsv(hue, 0.85, canvas.between(0.03, 0.14)),
        hsv(hue + 0.04, 0.65, canvas.between(0.15, 0.4)),
        smooth(-1, 1.2, canvas.y),
    )
    if canvas.chance(0.5):
        _, across = canvas.rotated(canvas.between(0, math.pi))
        band = np.exp(-((across / np.float32(canvas.between(0.2, 0.4))) ** 2))
        cloud = smooth(-0.7, 0.9, canvas.fractal(3, octaves=4, gain=0.6))
        picture = mix(
            picture, hsv(hue + canvas.between(-0.1, 0.12), 0.35, 0.75), band * cloud * np.float32(0.55)
        )
    stars = canvas.rng.random((canvas.size, canvas.size), dtype=np.float32)
    limit = np.float32(1 - canvas.between(0.012, 0.05) * min(1.0, 64 / canvas.size))
    picture = picture + np.clip((stars - limit) / (1 - limit), 0, 1)[..., None] * np.float32(0.95)
    for _ in range(canvas.whole(3, 10)):
        distance = np.hypot(
            canvas.x - np.float32(canvas.between(-1, 1)), canvas.y - np.float32(canvas.between(-1, 0.6))
        )
        picture = picture + np.exp(-distance * np.float32(canvas.between(26, 60)))[..., None]
    if canvas.chance(0.45):
        x, y, size = canvas.between(-0.65, 0.65), canvas.between(-0.7, -0.1), canvas.between(0.14, 0.3)
        distance = np.hypot(canvas.x - np.float32(x), canvas.y - np.float32(y))
        moon = (
            hsv(canvas.between(0.08, 0.16), 0.15, 1.0)
            * (np.float32(0.92) + np.float32(0.1) * canvas.noise(9))[..., None]
        )
        picture = mix(picture, moon, np.exp(-distance * np.float32(4)) * np.float32(0.4))
        dark = np.hypot(
            canvas.x - np.float32(x + size * canvas.between(-1.6, 1.6)), canvas.y - np.float32(y - 0.1 * size)
        )
        cover = canvas.cover(distance - np.float32(size)) * canvas.cover(
            np.float32(size * 0.9) - dark, softness=3
        )
        picture = mix(picture, moon, cover)
    ridge = np.float32(canvas.between(0.55, 0.95)) - np.float32(0.14) * canvas.skyline(3, octaves=5)
    return mix(picture, hsv(hue, 0.6, 0.025), canvas.cover(ridge[None, :] - canvas.y))


def city(canvas: Canvas) -> Floats:
    """Two rows of houses against the sky, with lit windows when it is dark."""
    dark = canvas.chance(0.5)
    if dark:
        hue = canvas.between(0.58, 0.95)
        low = hsv(hue + 0.1, canvas.between(0.4, 0.8), canvas.between(0.35, 0.75))
        picture = mix(hsv(hue, 0.7, canvas.between(0.06, 0.2)), low, smooth(-1, 0.7, canvas.y))
    else:
        picture, _, low = _sky(canvas)
    tone_hue = canvas.between(0, 1)
    for row in range(2):
        edges = np.cumsum(canvas.rng.uniform(0.2, 0.46, 14)).astype(np.float32) - np.float32(
            canvas.between(1.1, 1.4)
        )
        house = np.searchsorted(edges, canvas.x[0])
        tops = canvas.rng.uniform(-0.7, 0.3, 15).astype(np.float32) + np.float32(0.42 * row)
        tones = canvas.rng.uniform(0.75, 1.2, 15).astype(np.float32)
        value = (0.12 if row else 0.24) if dark else (0.42 if row else 0.68)
        wall = mix(hsv(tone_hue, canvas.between(0.08, 0.35), value), low, 0.35 * (1 - row))
        body = wall * np.broadcast_to(tones[house][None, :, None], picture.shape)
        step_x, step_y = canvas.between(0.085, 0.12), canvas.between(0.1, 0.17)
        u, v = canvas.x / np.float32(step_x), canvas.y / np.float32(step_y)
        lit = canvas.rng.random((64, 64), dtype=np.float32)
        chosen = lit[np.floor(v).astype(np.int64) % 64, np.floor(u).astype(np.int64) % 64] < (
            0.45 if dark else 0.8
        )
        pane = (np.abs(u % 1 - 0.5) < 0.29) & (np.abs(v % 1 - 0.5) < 0.29) & chosen
        pane &= canvas.y > tops[house][None, :] + np.float32(0.05)
        glass = (
            hsv(canvas.between(0.09, 0.16), canvas.between(0.3, 0.7), 1.0)
            if dark
            else hsv(0.58, 0.3, canvas.between(0.25, 0.9))
        )
        body = mix(body, glass, pane.astype(np.float32) * np.float32(0.85))
        picture = mix(picture, body, canvas.cover(tops[house][None, :] - canvas.y))
    return picture


def forest(canvas: Canvas) -> Floats:
    """Trunks one behind the other in coloured mist, with leaves above and ground below."""
    hue = canvas.between(0.18, 0.45) if canvas.chance(0.7) else canvas.between(0.03, 0.14)
    mist = hsv(hue, canvas.between(0.15, 0.5), canvas.between(0.65, 0.98))
    floor = hsv(hue - 0.06, canvas.between(0.4, 0.7), canvas.between(0.2, 0.5))
    picture = mix(mist * np.float32(0.85), mist, smooth(-1, 0.4, canvas.y))
    bark = hsv(canvas.between(0.02, 0.1), canvas.between(0.2, 0.6), canvas.between(0.06, 0.25))
    layers = 3
    for layer in range(layers):
        near = (layer + 1) / layers
        foot = np.float32(canvas.between(0.1, 0.25) + 0.55 * near)
        ground = (
            mix(mist, floor, 0.35 + 0.6 * near) * (1 + np.float32(0.12) * canvas.noise(14, 20))[..., None]
        )
        picture = mix(picture, ground, canvas.cover(foot - np.float32(0.12) - canvas.y, softness=4))
        colour = mix(mist, bark, 0.3 + 0.65 * near)
        for _ in range(canvas.whole(3, 5) if layer < 2 else canvas.whole(1, 3)):
            middle = canvas.between(-1, 1) + canvas.between(-0.12, 0.12) * canvas.y
            width = np.float32(canvas.between(0.025, 0.05) + 0.1 * near * near * canvas.between(0.6, 1.2))
            trunk = np.maximum(
                np.abs(canvas.x - middle) - width * (1 + np.float32(0.12) * canvas.y), canvas.y - foot
            )
            picture = mix(picture, colour, canvas.cover(trunk))
    crown = smooth(
        0.0,
        0.35,
        canvas.fractal(6, octaves=3, gain=0.7) * np.float32(0.6)
        - canvas.y
        - np.float32(canvas.between(0.35, 0.75)),
    )
    leaves = (
        hsv(hue, canvas.between(0.55, 0.85), canvas.between(0.2, 0.55))
        * (1 + np.float32(0.35) * canvas.noise(18))[..., None]
    )
    return mix(picture, leaves, crown)
