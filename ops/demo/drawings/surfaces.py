"""Painters of surfaces, which fill the picture: bands of colours, and tiles with joints between them."""

import math

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, mix, shaded, smooth


def _bands(place: Floats, colours: Floats, blur: float) -> Floats:
    """Colours [n, 3] in turn along `place` [S, S], one unit a colour; edges blend over `blur` units, <= 1."""
    whole = np.floor(place)
    index = whole.astype(np.int64) % len(colours)
    share = np.clip((place - whole - 1) / np.float32(blur) + 1, 0, 1)
    return mix(colours[index], colours[(index + 1) % len(colours)], share)


def stripes(c: Canvas) -> Floats:
    """Straight or wavy stripes in two to four colours, at any angle."""
    frequency = c.between(2.5, 9.0)
    place = c.rotated()[0] * frequency + c.between(0, 8)
    if c.chance(0.4):
        place = place + c.between(0.3, 1.2) * c.noise(c.whole(2, 3))
    blur = c.between(0.6, 1) if c.chance(0.25) else frequency * c.pixel
    return _bands(place, c.palette(c.whole(2, 4)), blur)


def rings(c: Canvas) -> Floats:
    """Circles in circles around a point, as on a target or in water."""
    frequency = c.between(3.0, 10.0)
    x, y = c.x - c.between(-0.5, 0.5), c.y - c.between(-0.5, 0.5)
    place = np.hypot(x, y * c.between(0.75, 1.3)) * frequency + c.between(0, 4)
    blur = c.between(0.5, 1) if c.chance(0.35) else frequency * c.pixel
    return _bands(place, c.palette(c.whole(2, 4)), blur)


def tartan(c: Canvas) -> Floats:
    """Woven cloth: the same coloured bands across and along, with a fine twill."""
    along, across = c.rotated(*((-0.15, 0.15) if c.chance(0.75) else (0.64, 0.93)))
    threads = c.palette(3)[c.rng.permutation([0, 0, 0, 0, 1, 1, 1, 2, 0, 2])]
    frequency, shift = c.between(4.0, 9.0), c.between(0, 9)
    warp, weft = (_bands(axis * frequency + shift, threads, frequency * c.pixel) for axis in (along, across))
    return shaded(mix(warp, weft, 0.5), 0.07, np.sin((along + across) * c.between(40, 60)))


def wood(c: Canvas) -> Floats:
    """Grain of a board with growth rings, fine fibres and now and then the gap between two planks."""
    upright = c.chance(0.5)
    along, across = c.rotated(-0.25 + math.pi / 2 * upright, 0.25 + math.pi / 2 * upright)
    far = c.between(0.1, 1.6)
    rings = np.hypot(along * c.between(0.12, 0.35), across + far + c.between(0.12, 0.35) * c.noise(2))
    hue, value = c.between(0.04, 0.1), c.between(0.45, 0.9)
    light = c.colour(hue + 0.015, (0.3, 0.6), value)
    dark = c.colour(hue, (0.5, 0.8), value * c.between(0.5, 0.8))
    picture = _bands(rings * c.between(10, 22), np.stack([light, dark]), 1.0)
    picture = shaded(picture, 0.08, c.noise(30, 4) if upright else c.noise(4, 30))
    if c.chance(0.5):
        gaps = np.abs((across * c.between(0.6, 1.4) + far) % 1 - 0.5)
        picture = shaded(picture, -0.65, c.cover(gaps - 0.02))
    return picture


def marble(c: Canvas) -> Floats:
    """Polished stone with branching veins."""
    swirl = c.between(2.2, 4.2) * c.fractal(c.whole(2, 3), octaves=5, gain=0.55)
    wave = np.sin(c.rotated()[0] * c.between(1.5, 4) + swirl)
    hue, pale = c.between(0, 1), c.chance(0.6)
    ground, shade = c.colour(hue, *((0.05, 0.96) if pale else (0.6, 0.3))), 0.83 if pale else 0.55
    vein = c.colour(hue, 0.25, (0.2, 0.5)) if pale else c.colour(hue + 0.1, 0.15, 0.9)
    clouds = shaded(ground, shade - 1, smooth(-0.9, 0.9, c.fractal(2, octaves=3)))
    return mix(clouds, vein, np.power(1 - np.abs(wave), c.between(2.5, 6)))


def gradient(c: Canvas) -> Floats:
    """Colours that run into each other without an edge."""
    hue = c.between(0, 1)
    hues = [hue + c.between(-0.3, 0.3) for _ in range(4)]
    colours = np.stack([c.colour(one, (0.25, 0.85), (0.45, 1.0)) for one in hues])
    place = c.rotated(0, 2 * math.pi)[0] if c.chance(0.5) else c.noise(2)
    return _bands(1.5 * smooth(-1.4, 1.4, place) + smooth(-1, 1, c.noise(2)), colours, 1.0)


def tiled(along: Floats, across: Floats, stagger: float = 0.0) -> tuple[Floats, Floats, Floats, Floats]:
    """Tiles of one unit: coordinates [S, S] inside each, from -0.5 to 0.5, and its column and row, >= 0."""
    across = across + 20
    row = np.floor(across)
    along = along + 20 + stagger * (row % 2)
    column = np.floor(along)
    return along - column - 0.5, across - row - 0.5, column, row


def checker(c: Canvas) -> Floats:
    """A chess board, turned, sometimes running away into the distance."""
    along, across = c.rotated()
    frequency = c.between(2.0, 7.0) / (1.55 + c.between(0.3, 0.9) * c.y * c.chance(0.4))
    u, v, column, row = tiled(along * frequency + c.between(0, 2), across * frequency + c.between(0, 2))
    dark, light = c.palette(2)
    edge = np.minimum(0.5 - np.abs(u), 0.5 - np.abs(v)) / frequency
    share = np.abs((column + row) % 2 - 0.5 * c.cover(edge))
    return mix(dark, light, share)


def dots(c: Canvas) -> Floats:
    """Round spots on a plain ground, in rows or staggered, of one or several colours."""
    along, across = c.rotated()
    frequency = c.between(1.6, 4.6)
    u, v, column, row = tiled(along * frequency, across * frequency, 0.5 if c.chance(0.6) else 0.0)
    ground, *spots = c.palette(c.whole(2, 5))
    which = (column * 7 + row * 13 + column * row).astype(np.int64) % len(spots)
    return mix(ground, np.stack(spots)[which], c.cover((np.hypot(u, v) - c.between(0.2, 0.44)) / frequency))


def bricks(c: Canvas) -> Floats:
    """A wall of staggered bricks, each of its own shade, with mortar between."""
    along, across = c.rotated(-0.12, 0.12)
    rows = c.between(2.2, 5.0)
    u, v, column, row = tiled(along * rows * c.between(0.4, 0.6), across * rows, 0.5)
    shades = c.rng.random(64, dtype=np.float32)[(column * 7 + row * 13).astype(np.int64) % 64]
    hue = c.between(0.0, 0.06) if c.chance(0.7) else c.between(0, 1)
    light, dark = c.colour(hue + 0.02, 0.55, (0.6, 0.9)), c.colour(hue, 0.65, (0.3, 0.5))
    wall = mix(light, dark, np.clip(shades + 0.22 * c.fractal(8, octaves=2), 0, 1))
    gap = np.minimum(1 - 2 * np.abs(u), 0.5 - np.abs(v)) / rows
    return mix(wall, c.colour((0.05, 0.15), 0.08, (0.5, 0.92)), c.cover(gap - c.between(0.018, 0.04)))


def stones(c: Canvas) -> Floats:
    """Pebbles pressed together: each pixel belongs to the nearest of some points; rounded, dark joints."""
    number = c.whole(10, 44)
    spots = c.rng.random((2, number), dtype=np.float32) * 2.5 - 1.25
    bend = 0.06 * c.noise(6)
    across, down = ((axis + bend)[..., None] - place for axis, place in zip((c.x, c.y), spots, strict=True))
    squared = across * across + down * down
    first, second = np.moveaxis(np.sqrt(np.partition(squared, 1, axis=-1)[..., :2]), -1, 0)
    gap = second - first
    hue, pale = c.between(0, 1), c.between(0.02, 0.3)
    tones = np.stack([c.colour(hue + c.between(-0.08, 0.08), pale, (0.4, 0.95)) for _ in range(number)])
    height = np.sqrt(np.clip(gap * (math.sqrt(number) / 2.4), 0, 1))
    picture = shaded(tones[np.argmin(squared, axis=-1)], 0.5, height + 0.2 * c.noise(20) - 0.8)
    return mix(picture, c.colour(hue, 0.2, (0.05, 0.25)), c.cover(gap - c.between(0.02, 0.06)))
