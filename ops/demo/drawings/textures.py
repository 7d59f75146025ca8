"""Painters of surfaces: patterns that fill the picture and have no one place to look at."""

import math

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, bands, hsv, mix, smooth


def stripes(canvas: Canvas) -> Floats:
    """Straight or wavy stripes in two to four colours, at any angle."""
    along, _ = canvas.rotated(canvas.between(0, math.pi))
    number = canvas.whole(2, 4)
    frequency = canvas.between(2.5, 9.0)
    place = along * np.float32(frequency) + np.float32(canvas.between(0, 8))
    if canvas.chance(0.4):
        place = place + np.float32(canvas.between(0.3, 1.2)) * canvas.noise(canvas.whole(2, 3))
    blur = canvas.between(0.6, 1.0) if canvas.chance(0.25) else frequency * canvas.pixel
    return bands(place, canvas.palette(number), blur)


def checker(canvas: Canvas) -> Floats:
    """A chess board, turned, sometimes running away into the distance."""
    along, across = canvas.rotated(canvas.between(0, math.pi))
    if canvas.chance(0.4):
        depth = np.float32(1) / (np.float32(1.55) + np.float32(canvas.between(0.3, 0.9)) * canvas.y)
        along, across = along * depth, across * depth
    frequency = canvas.between(1.6, 5.5)
    sharp = np.float32(1 / (math.pi * frequency * canvas.pixel))
    shift = np.float32(canvas.between(0, 2))
    turn = np.float32(math.pi * frequency)
    left = np.clip(np.sin(along * turn + shift) * sharp, -1, 1)
    right = np.clip(np.sin(across * turn + shift * 2) * sharp, -1, 1)
    dark, light = canvas.palette(2)
    return mix(dark, light, (left * right + 1) / 2)


def dots(canvas: Canvas) -> Floats:
    """Round spots on a plain ground, in rows or staggered, of one or several colours."""
    along, across = canvas.rotated(canvas.between(0, math.pi))
    frequency = np.float32(canvas.between(1.6, 4.6))
    u, v = along * frequency + 20, across * frequency + 20
    if canvas.chance(0.6):
        u = u + np.float32(0.5) * (np.floor(v) % 2)
    cell_u, cell_v = np.floor(u), np.floor(v)
    radius = canvas.between(0.2, 0.44)
    distance = (np.hypot(u - cell_u - 0.5, v - cell_v - 0.5) - np.float32(radius)) / frequency
    colours = canvas.palette(canvas.whole(2, 5))
    which = (cell_u * 7 + cell_v * 13 + cell_u * cell_v).astype(np.int64) % (len(colours) - 1)
    return mix(colours[-1], colours[which], canvas.cover(distance))


def wood(canvas: Canvas) -> Floats:
    """Grain of a board with growth rings, fine fibres and now and then the gap between two planks."""
    angle = canvas.between(-0.25, 0.25) + (math.pi / 2 if canvas.chance(0.5) else 0.0)
    along, across = canvas.rotated(angle)
    far = np.float32(canvas.between(0.1, 1.6))
    warp = np.float32(canvas.between(0.12, 0.35)) * canvas.noise(2, 2)
    rings = np.hypot(along * np.float32(canvas.between(0.12, 0.35)), across + far + warp)
    place = rings * np.float32(canvas.between(5, 11))
    grain = smooth(0, 1, np.abs((place % 1) * 2 - 1))
    fibres = canvas.noise(4, 30) if abs(angle) < 1 else canvas.noise(30, 4)
    hue, depth = canvas.between(0.04, 0.1), canvas.between(0.45, 0.9)
    light = hsv(hue + 0.015, canvas.between(0.3, 0.6), depth)
    dark = hsv(hue, canvas.between(0.5, 0.8), depth * canvas.between(0.45, 0.75))
    picture = mix(light, dark, np.clip(grain * 0.8 + 0.18 * fibres, 0, 1))
    if canvas.chance(0.5):
        gaps = np.abs(((across * np.float32(canvas.between(0.6, 1.4)) + far) % 1) - 0.5)
        picture = picture * (1 - 0.65 * canvas.cover(gaps - np.float32(0.02)))[..., None]
    return picture


def marble(canvas: Canvas) -> Floats:
    """Polished stone with branching veins."""
    along, _ = canvas.rotated(canvas.between(0, math.pi))
    swirl = canvas.fractal(canvas.whole(2, 3), octaves=5, gain=0.55)
    wave = np.sin(along * np.float32(canvas.between(1.5, 4)) + np.float32(canvas.between(2.2, 4.2)) * swirl)
    veins = (1 - np.abs(wave)) ** np.float32(canvas.between(2.5, 6))
    clouds = smooth(-0.9, 0.9, canvas.fractal(2, octaves=3))
    hue = canvas.between(0, 1)
    if canvas.chance(0.6):
        ground, shade, vein = (
            hsv(hue, 0.05, 0.96),
            hsv(hue, 0.12, 0.8),
            hsv(hue, 0.25, canvas.between(0.2, 0.5)),
        )
    else:
        ground, shade, vein = hsv(hue, 0.6, 0.3), hsv(hue + 0.05, 0.6, 0.16), hsv(hue + 0.1, 0.15, 0.9)
    return mix(mix(ground, shade, clouds), vein, veins)


def bricks(canvas: Canvas) -> Floats:
    """A wall of staggered bricks, each of its own shade, with mortar between."""
    along, across = canvas.rotated(canvas.between(-0.12, 0.12))
    rows = np.float32(canvas.between(2.2, 5.0))
    v = across * rows + 20
    row = np.floor(v)
    u = along * rows * np.float32(canvas.between(0.4, 0.6)) + 20 + np.float32(0.5) * (row % 2)
    column = np.floor(u)
    shades = canvas.rng.random((64, 64), dtype=np.float32)[
        row.astype(np.int64) % 64, column.astype(np.int64) % 64
    ]
    gap = np.minimum((0.5 - np.abs(u - column - 0.5)) * 2, 0.5 - np.abs(v - row - 0.5)) / rows
    joint = np.float32(canvas.between(0.018, 0.04))
    hue = canvas.between(0.0, 0.06) if canvas.chance(0.7) else canvas.between(0, 1)
    light, dark = hsv(hue + 0.02, 0.55, canvas.between(0.6, 0.9)), hsv(hue, 0.65, canvas.between(0.3, 0.5))
    wall = mix(light, dark, np.clip(shades + 0.22 * canvas.fractal(8, octaves=2), 0, 1))
    mortar = hsv(canvas.between(0.05, 0.15), 0.08, canvas.between(0.5, 0.92))
    return mix(wall, mortar, canvas.cover(gap - joint))


def tartan(canvas: Canvas) -> Floats:
    """Woven cloth: the same coloured bands across and along, with a fine twill."""
    along, across = canvas.rotated(
        canvas.between(-0.15, 0.15) + (math.pi / 4 if canvas.chance(0.25) else 0.0)
    )
    frequency = canvas.between(0.8, 1.9)
    colours = canvas.palette(3)
    picture = np.broadcast_to(colours[0], (canvas.size, canvas.size, 3))
    for number in range(canvas.whole(2, 4)):
        centre, width = np.float32(canvas.between(0, 1)), np.float32(canvas.between(0.02, 0.2))
        strength = np.float32(canvas.between(0.4, 0.62))
        for axis in (along, across):
            place = np.abs(((axis * np.float32(frequency) + centre) % 1) - 0.5)
            cover = canvas.cover((place - width) / np.float32(frequency), softness=1.5)
            picture = mix(picture, colours[1 + number % 2], cover * strength)
    twill = np.sin((along + across) * np.float32(canvas.between(40, 60)))
    cloth: Floats = picture * (1 + np.float32(0.07) * twill)[..., None]
    return cloth


def stones(canvas: Canvas) -> Floats:
    """Pebbles pressed together: nearest-point cells, rounded, with dark joints."""
    number = canvas.whole(10, 44)
    spots = canvas.rng.random((number, 2), dtype=np.float32) * np.float32(2.5) - np.float32(1.25)
    bend = np.float32(0.06) * canvas.noise(6)
    squared = (canvas.x + bend)[..., None] - spots[:, 0]
    squared *= squared
    other = (canvas.y + bend)[..., None] - spots[:, 1]
    other *= other
    squared += other
    nearest = np.argmin(squared, axis=-1)
    two = np.sqrt(np.partition(squared, 1, axis=-1)[..., :2])
    joint = np.float32(canvas.between(0.02, 0.06))
    height = np.clip((two[..., 1] - two[..., 0]) * np.float32(math.sqrt(number) / 2.4), 0, 1)
    hue, colourful = canvas.between(0, 1), canvas.between(0.02, 0.3)
    tones = np.stack([
        hsv(hue + canvas.between(-0.08, 0.08), colourful, canvas.between(0.4, 0.95)) for _ in range(number)
    ])  # fmt: skip
    picture = tones[nearest] * (np.float32(0.5) + np.float32(0.55) * np.sqrt(height))[..., None]
    picture = picture * (1 + np.float32(0.12) * canvas.noise(20))[..., None]
    return mix(
        picture, hsv(hue, 0.2, canvas.between(0.05, 0.25)), canvas.cover(two[..., 1] - two[..., 0] - joint)
    )


def rings(canvas: Canvas) -> Floats:
    """Circles in circles around a point, as on a target or in water."""
    x, y = canvas.x - np.float32(canvas.between(-0.5, 0.5)), canvas.y - np.float32(canvas.between(-0.5, 0.5))
    radius = np.hypot(x, y * np.float32(canvas.between(0.75, 1.3)))
    frequency = canvas.between(3.0, 10.0)
    place = radius * np.float32(frequency) + np.float32(canvas.between(0, 4))
    blur = canvas.between(0.5, 1.0) if canvas.chance(0.35) else frequency * canvas.pixel
    return bands(place, canvas.palette(canvas.whole(2, 4)), blur)


def gradient(canvas: Canvas) -> Floats:
    """Colours that run into each other without an edge."""
    hue = canvas.between(0, 1)
    colours = [
        hsv(hue + canvas.between(-0.3, 0.3), canvas.between(0.25, 0.85), canvas.between(0.45, 1.0))
        for _ in range(4)
    ]
    if canvas.chance(0.5):
        angle = canvas.between(0, 2 * math.pi)
        along, across = canvas.rotated(angle)
        share, other = smooth(-1.2, 1.2, along), smooth(-1.4, 1.4, across)
    else:
        share = smooth(-0.9, 0.9, canvas.noise(2))
        other = smooth(-0.9, 0.9, canvas.noise(2))
    return mix(
        mix(colours[0], colours[1], share), mix(colours[2], colours[3], share), other * np.float32(0.8)
    )
