"""Painters of single things on a quiet ground."""

import math

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, hsv, mix, shaded, smooth


def ball(c: Canvas) -> Floats:
    """One to three lit balls on a table, each with its shadow."""
    horizon = c.between(-0.35, 0.35)
    wall, table = c.palette(2)
    picture = mix(wall, table, smooth(0, 0.12, c.y - horizon))
    light_x, light_y = c.between(-0.7, 0.7), c.between(-0.8, -0.4)
    number = 1 if c.chance(0.6) else c.whole(2, 3)
    for place in range(number):
        radius = c.between(0.34, 0.62) if number == 1 else c.between(0.22, 0.36)
        across = c.between(-0.35, 0.35) if number == 1 else (place - (number - 1) / 2) * 0.68
        x, y = (c.x - across) / radius, (c.y - c.between(-0.05, 0.3)) / radius
        colour = c.colour((0, 1), (0.5, 0.95), (0.6, 1.0))
        shadow = smooth(0.55, 1.15, np.hypot(x + light_x * 0.5, (y - 0.98) * 3.4))
        picture = shaded(picture, -0.6, 1 - shadow)
        squared = x * x + y * y
        facing = np.clip(x * light_x + y * light_y + np.sqrt(np.clip(1 - squared, 0, 1)) * 0.65, 0, 1)
        gloss = facing ** c.between(14, 40)
        lit = colour * (0.2 + 0.9 * facing)[..., None] + gloss[..., None] * 0.7
        picture = mix(picture, lit, c.cover((np.sqrt(squared) - 1) * radius))
    return picture


def polygon(c: Canvas) -> Floats:
    """One to three flat triangles, squares, pentagons or hexagons, with a soft shadow."""
    number = c.whole(1, 3)
    colours = c.palette(number + 2)
    slope = smooth(-1.5, 1.5, c.rotated((0, 6.3))[0])
    picture = mix(colours[0], mix(colours[0], colours[1], 0.35), slope)
    for place in range(number):
        sides = c.whole(3, 6)
        size = c.between(0.45, 0.72) if number == 1 else c.between(0.3, 0.5)
        reach = 0.2 if number == 1 else 0.5
        x, y = c.between(-reach, reach), c.between(-reach, reach)
        turn = c.between(0, 2 * math.pi)
        shadow = c.cover(_inside_polygon(c.x - (x + 0.06), c.y - (y + 0.08), sides, size, turn), softness=6)
        picture = shaded(picture, -0.35, shadow)
        inside = _inside_polygon(c.x - x, c.y - y, sides, size, turn)
        picture = mix(picture, colours[2 + place], c.cover(inside))
    return picture


def _inside_polygon(x: Floats, y: Floats, sides: int, size: float, turn: float) -> Floats:
    """Distance [S, S] to the nearest edge line of a regular polygon around 0, negative inside."""
    angles = [turn + 2 * math.pi * side / sides for side in range(sides)]
    farthest: Floats = np.max([x * math.cos(angle) + y * math.sin(angle) for angle in angles], axis=0)
    return farthest - size * math.cos(math.pi / sides)


def flower(c: Canvas) -> Floats:
    """One to three flowers with petals around a round heart, before blurred leaves."""
    hue = c.between(0.24, 0.4)
    leaves = smooth(-0.8, 0.8, c.fractal(3, octaves=3))
    picture = mix(c.colour(hue, 0.7, (0.12, 0.3)), c.colour(hue - 0.05, 0.6, (0.4, 0.75)), leaves)
    number = 1 if c.chance(0.55) else c.whole(2, 3)
    petal_hue = c.between(0.55, 1.17)
    colour = c.colour(petal_hue, (0.05, 0.85), (0.8, 1.0))
    tip = hsv(petal_hue + c.between(-0.08, 0.08), c.between(0.4, 0.9), c.between(0.55, 0.95))
    heart = c.colour((0.08, 0.15), 0.85, (0.35, 0.95))
    petals = c.whole(5, 9)
    for _ in range(number):
        reach = 0.22 if number == 1 else 0.55
        size = c.between(0.6, 0.88) if number == 1 else c.between(0.32, 0.5)
        x, y = c.x - c.between(-reach, reach), c.y - c.between(-reach, reach)
        radius, angle = np.hypot(x, y), np.arctan2(y, x) + c.between(0, 6.3)
        fold = np.abs(np.cos(angle * (petals / 2)))
        petal = mix(colour, tip, smooth(0.1, 1, radius / size)) * (0.72 + 0.28 * fold)[..., None]
        picture = mix(picture, petal, c.cover(radius - size * (0.42 + 0.58 * np.sqrt(fold))))
        picture = mix(picture, heart, c.cover(radius - size * c.between(0.2, 0.3)))
    return picture
