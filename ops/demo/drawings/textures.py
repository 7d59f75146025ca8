"""Painters of surfaces: patterns that fill the picture and have no one place to look at."""

import math

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, bands, hsv, mix, shaded, smooth


def stripes(c: Canvas) -> Floats:
    """Straight or wavy stripes in two to four colours, at any angle."""
    along, _ = c.rotated()
    number = c.whole(2, 4)
    frequency = c.between(2.5, 9.0)
    place = along * frequency + c.between(0, 8)
    if c.chance(0.4):
        place = place + c.between(0.3, 1.2) * c.noise(c.whole(2, 3))
    blur = c.between(0.6, 1.0) if c.chance(0.25) else frequency * c.pixel
    return bands(place, c.palette(number), blur)


def rings(c: Canvas) -> Floats:
    """Circles in circles around a point, as on a target or in water."""
    x, y = c.x - c.between(-0.5, 0.5), c.y - c.between(-0.5, 0.5)
    radius = np.hypot(x, y * c.between(0.75, 1.3))
    frequency = c.between(3.0, 10.0)
    place = radius * frequency + c.between(0, 4)
    blur = c.between(0.5, 1.0) if c.chance(0.35) else frequency * c.pixel
    return bands(place, c.palette(c.whole(2, 4)), blur)


def checker(c: Canvas) -> Floats:
    """A chess board, turned, sometimes running away into the distance."""
    along, across = c.rotated()
    if c.chance(0.4):
        depth = np.float32(1) / (1.55 + c.between(0.3, 0.9) * c.y)
        along, across = along * depth, across * depth
    turn = math.pi * c.between(1.6, 5.5)
    shift = c.between(0, 2)
    left, right = (
        np.clip(np.sin(axis * turn + start) * (1 / (turn * c.pixel)), -1, 1)
        for axis, start in ((along, shift), (across, shift * 2))
    )
    dark, light = c.palette(2)
    return mix(dark, light, (left * right + 1) / 2)


def dots(c: Canvas) -> Floats:
    """Round spots on a plain ground, in rows or staggered, of one or several colours."""
    along, across = c.rotated()
    frequency = c.between(1.6, 4.6)
    u, v = along * frequency + 20, across * frequency + 20
    if c.chance(0.6):
        u = u + 0.5 * (np.floor(v) % 2)
    cell_u, cell_v = np.floor(u), np.floor(v)
    distance = (np.hypot(u - cell_u - 0.5, v - cell_v - 0.5) - c.between(0.2, 0.44)) / frequency
    colours = c.palette(c.whole(2, 5))
    which = (cell_u * 7 + cell_v * 13 + cell_u * cell_v).astype(np.int64) % (len(colours) - 1)
    return mix(colours[-1], colours[which], c.cover(distance))


def bricks(c: Canvas) -> Floats:
    """A wall of staggered bricks, each of its own shade, with mortar between."""
    along, across = c.rotated((-0.12, 0.12))
    rows = c.between(2.2, 5.0)
    v = across * rows + 20
    row = np.floor(v)
    u = along * np.float32(rows) * c.between(0.4, 0.6) + 20 + 0.5 * (row % 2)
    column = np.floor(u)
    tones = c.rng.random((64, 64), dtype=np.float32)
    shades = tones[row.astype(np.int64) % 64, column.astype(np.int64) % 64]
    gap = np.minimum((0.5 - np.abs(u - column - 0.5)) * 2, 0.5 - np.abs(v - row - 0.5)) / rows
    joint = c.between(0.018, 0.04)
    hue = c.between(0.0, 0.06) if c.chance(0.7) else c.between(0, 1)
    light, dark = c.colour(hue + 0.02, 0.55, (0.6, 0.9)), c.colour(hue, 0.65, (0.3, 0.5))
    wall = mix(light, dark, np.clip(shades + 0.22 * c.fractal(8, octaves=2), 0, 1))
    return mix(wall, c.colour((0.05, 0.15), 0.08, (0.5, 0.92)), c.cover(gap - joint))


def tartan(c: Canvas) -> Floats:
    """Woven cloth: the same coloured bands across and along, with a fine twill."""
    along, across = c.rotated(c.between(-0.15, 0.15) + (math.pi / 4 if c.chance(0.25) else 0.0))
    frequency = c.between(0.8, 1.9)
    colours = c.palette(3)
    picture = np.broadcast_to(colours[0], (c.size, c.size, 3))
    for number in range(c.whole(2, 4)):
        centre, width, strength = c.between(0, 1), c.between(0.02, 0.2), c.between(0.4, 0.62)
        for axis in (along, across):
            place = np.abs(((axis * frequency + centre) % 1) - 0.5)
            cover = c.cover((place - width) / frequency, softness=1.5)
            picture = mix(picture, colours[1 + number % 2], cover * strength)
    return shaded(picture, 0.07, np.sin((along + across) * c.between(40, 60)))


def stones(c: Canvas) -> Floats:
    """Pebbles pressed together: nearest-point cells, rounded, with dark joints."""
    number = c.whole(10, 44)
    spots = c.rng.random((number, 2), dtype=np.float32) * 2.5 - 1.25
    bend = 0.06 * c.noise(6)
    across, down = ((axis + bend)[..., None] - spots[:, place] for place, axis in enumerate((c.x, c.y)))
    squared = across * across + down * down
    nearest = np.argmin(squared, axis=-1)
    two = np.sqrt(np.partition(squared, 1, axis=-1)[..., :2])
    gap: Floats = two[..., 1] - two[..., 0]
    joint = c.between(0.02, 0.06)
    height = np.clip(gap * (math.sqrt(number) / 2.4), 0, 1)
    hue, colourful = c.between(0, 1), c.between(0.02, 0.3)
    tones = np.stack(
        [hsv(hue + c.between(-0.08, 0.08), colourful, c.between(0.4, 0.95)) for _ in range(number)]
    )
    picture = tones[nearest] * (0.5 + 0.55 * np.sqrt(height))[..., None]
    picture = shaded(picture, 0.12, c.noise(20))
    return mix(picture, c.colour(hue, 0.2, (0.05, 0.25)), c.cover(gap - joint))


def wood(c: Canvas) -> Floats:
    """Grain of a board with growth rings, fine fibres and now and then the gap between two planks."""
    angle = c.between(-0.25, 0.25)
    upright = c.chance(0.5)
    along, across = c.rotated(angle + (math.pi / 2 if upright else 0.0))
    far = c.between(0.1, 1.6)
    warp = c.between(0.12, 0.35) * c.noise(2, 2)
    distance = np.hypot(along * c.between(0.12, 0.35), across + far + warp)
    grain = smooth(0, 1, np.abs((distance * c.between(5, 11) % 1) * 2 - 1))
    fibres = c.noise(30, 4) if upright else c.noise(4, 30)
    hue, depth = c.between(0.04, 0.1), c.between(0.45, 0.9)
    light = hsv(hue + 0.015, c.between(0.3, 0.6), depth)
    dark = hsv(hue, c.between(0.5, 0.8), depth * c.between(0.45, 0.75))
    picture = mix(light, dark, np.clip(grain * 0.8 + 0.18 * fibres, 0, 1))
    if c.chance(0.5):
        gaps = np.abs(((across * c.between(0.6, 1.4) + far) % 1) - 0.5)
        picture = shaded(picture, -0.65, c.cover(gaps - 0.02))
    return picture


def marble(c: Canvas) -> Floats:
    """Polished stone with branching veins."""
    along, _ = c.rotated()
    swirl = c.fractal(c.whole(2, 3), octaves=5, gain=0.55)
    wave = np.sin(along * c.between(1.5, 4) + c.between(2.2, 4.2) * swirl)
    veins: Floats = np.power(1 - np.abs(wave), c.between(2.5, 6))
    clouds = smooth(-0.9, 0.9, c.fractal(2, octaves=3))
    hue = c.between(0, 1)
    if c.chance(0.6):
        ground, shade, vein = hsv(hue, 0.05, 0.96), hsv(hue, 0.12, 0.8), c.colour(hue, 0.25, (0.2, 0.5))
    else:
        ground, shade, vein = hsv(hue, 0.6, 0.3), hsv(hue + 0.05, 0.6, 0.16), hsv(hue + 0.1, 0.15, 0.9)
    return mix(mix(ground, shade, clouds), vein, veins)


def gradient(c: Canvas) -> Floats:
    """Colours that run into each other without an edge."""
    hue = c.between(0, 1)
    colours = [hsv(hue + c.between(-0.3, 0.3), c.between(0.25, 0.85), c.between(0.45, 1.0)) for _ in range(4)]
    if c.chance(0.5):
        along, across = c.rotated((0, 2 * math.pi))
        share, other = smooth(-1.2, 1.2, along), smooth(-1.4, 1.4, across)
    else:
        share, other = smooth(-0.9, 0.9, c.noise(2)), smooth(-0.9, 0.9, c.noise(2))
    return mix(mix(colours[0], colours[1], share), mix(colours[2], colours[3], share), other * 0.8)
